"""Keeping a calibration in the file or folder that the user names, or in the user's cache.

A file that the user names belongs to the user: it must hold the requested calibration, and nothing else is touched. The
cache belongs to Sieve: its content is reused if it can be trusted, and made again if not. It keeps one calibration, and
its errors never end a run.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sieve.calibration.statistics import Statistics
from sieve.errors import InputError, StorageError
from sieve.utils import progress
from sieve.utils.files import in_cache, require_writable, why_untrusted

_NAME = re.compile(r"[0-9a-f]{16}\.safetensors")


def require_place(path: str | Path) -> None:
    """Check before long work that a calibration can be kept at `path`, else StorageError. The cache may fail later."""
    path = Path(path)
    is_folder = path.is_dir() or not path.suffix
    if in_cache(path):
        return
    if os.path.exists(path) and not is_folder:
        if not Statistics.is_in(path):
            raise StorageError(f"{path} is no calibration of Sieve's, or damaged: name another file with --statistics")
    else:
        require_writable(path / "x" if is_folder else path)


def kept_file(path: str | Path, identity: Mapping[str, Any]) -> Path:
    """The file itself, or in a folder (a path without suffix) the one named after `identity`."""
    path = Path(path)
    if path.suffix and not path.is_dir():
        return path
    return path / (hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16] + ".safetensors")


def kept_statistics(file: Path, identity: Mapping[str, Any], device: torch.device) -> Statistics | None:
    """The statistics in `file`, or None if there is nothing to reuse.

    Raises: InputError, StorageError for a file outside the cache that holds something else or is damaged.
    """
    cached = _is_cached(file)
    if not os.path.exists(file):
        return None
    try:
        if cached and (reason := why_untrusted(file.parent) or why_untrusted(file)):
            raise StorageError(f"not used: {reason}")
        statistics = Statistics.load(file, device)
        statistics.require(identity, file)
    except (InputError, StorageError) as error:
        if not cached:
            raise
        progress.note_once(f"the cached calibration is made again: {error}")
        return None
    progress.say(f"  calibration: reused {file}")
    return statistics


def keep(statistics: Statistics, file: Path) -> None:
    """Write `file`; in the cache it replaces the earlier calibration.

    Raises: StorageError if it cannot be written and is not in the cache.
    """
    try:
        statistics.save(file)
    except StorageError as error:
        if not _is_cached(file):
            raise
        progress.note_once(f"the calibration is not kept: {error}")
        return
    if _is_cached(file):
        file.chmod(0o600)
        for other in file.parent.glob("*.safetensors"):
            if other != file and _is_cached(other) and Statistics.is_in(other):
                other.unlink(missing_ok=True)


def _is_cached(file: Path) -> bool:
    """Whether the file is in our cache and has a name from `kept_file`."""
    return _NAME.fullmatch(file.name) is not None and in_cache(file)
