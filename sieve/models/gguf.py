"""A GGUF file as a folder of safetensors, made once and kept in the cache.

Reading GGUF takes half a minute for a small model, most of it in parsing the vocabulary; the folder loads in a second.
Weights are unpacked to float32, which holds every GGUF type exactly, so that no precision is lost whatever dtype the
model then runs in.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sieve.errors import InputError, StorageError
from sieve.utils import progress
from sieve.utils.files import (
    atomic_folder,
    cache_folder,
    locked_folder,
    process_folder,
    storage_errors,
    why_untrusted,
    write_json,
)
from sieve.utils.messages import one_line

_FORMAT = 1  # of the folder: raise it when the conversion changes
_MANIFEST = "manifest.json"
_SHARD = "128MB"  # several files are hashed in parallel


def safetensors_folder(gguf: Path) -> Path:
    """The cached folder with the model and tokenizer of `gguf`; converts on first use, or if the copy is damaged.

    The folder is named by the file's contents, appears only when complete, and its checksums are verified every time.
    Processes that convert the same file at once do so side by side; the first to finish is kept. Where there is no
    cache that can be trusted and written, the folder is one of this process and goes with it.

    Raises: InputError if the file is no GGUF or of an architecture that transformers cannot read; StorageError.
    """
    source = {"name": gguf.name, "bytes": gguf.stat().st_size, "sha256": _sha256(gguf)}
    name = f"{gguf.stem}-{source['sha256'][:16]}"
    cached = cache_folder("models")
    if cached is not None:
        try:
            return _converted(gguf, source, cached / name)
        except StorageError as error:
            progress.note_once(f"the converted {gguf.name} is not kept: {error}")
    return _converted(gguf, source, process_folder() / name)


def _converted(gguf: Path, source: dict[str, Any], folder: Path) -> Path:
    """`folder`, where it is or becomes a conversion of `source` that can be trusted; else StorageError."""
    there = folder.exists()
    if there:
        if reason := _why_untrusted(folder):
            raise StorageError(f"there is a copy that is not used, {reason}")
        if _is_intact(folder, source):
            return folder
        progress.say(f"  the cached copy of {gguf.name} is damaged: making it again")
    else:
        progress.say(f"  converting {gguf.name}, once")
    try:
        with storage_errors(folder):
            (_mend if there else _make)(gguf, source, folder)
            for path in (folder, *folder.iterdir()):
                path.chmod(0o700 if path.is_dir() else 0o600)
    except (InputError, StorageError):
        if not _is_intact(folder, source):  # else another process was quicker
            raise
    return folder


def _make(gguf: Path, source: dict[str, Any], folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        _convert(gguf, temporary)
        write_json(temporary / _MANIFEST, {"format": _FORMAT, "source": source, "files": _checksums(temporary)})


def _mend(gguf: Path, source: dict[str, Any], folder: Path) -> None:
    """Replace the files that are there by those of a new conversion; other files stay."""
    with locked_folder(folder.parent, folder.name) as place:
        made = place / folder.name
        _make(gguf, source, made)
        for file in sorted(made.iterdir(), key=lambda file: file.name == _MANIFEST):  # the manifest last
            file.replace(folder / file.name)


def _why_untrusted(folder: Path) -> str | None:
    return next(filter(None, map(why_untrusted, (folder, *folder.iterdir()))), None)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place, options = str(gguf.parent), {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
        )
    except Exception as error:  # of many kinds, from four libraries
        raise InputError(
            f"cannot read {gguf}: {one_line(error)}; give the model as safetensors or another GGUF file"
        ) from error
    model.save_pretrained(folder, max_shard_size=_SHARD)
    tokenizer.save_pretrained(folder)


def _is_intact(folder: Path, source: dict[str, Any]) -> bool:
    """Whether the folder is a complete, unchanged conversion of `source`; other files in it do not matter."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        wanted = {"format": _FORMAT, "source": source, "files": _checksums(folder, manifest["files"])}
        return manifest == wanted
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _checksums(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Name → SHA-256 of these files of a folder, or of all."""
    files = sorted(folder.iterdir() if names is None else (folder / name for name in names))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip((file.name for file in files), pool.map(_sha256, files), strict=True))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
