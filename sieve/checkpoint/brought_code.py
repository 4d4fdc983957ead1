"""The code that a pruned model's folder brings: `trust_remote_code=True` loads the model where Sieve is missing.

Transformers runs it only when the user trusts the folder. Without that, `weight_files` keeps the folder from loading.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

_AUTO_CLASS = "AutoModelForCausalLM"
# Named, not imported: the file imports transformers, in the middle of whose own import this module is needed.
_FILE = Path(__file__).with_name("modeling_sieve.py")
_NAMED = "modeling_sieve.PrunedModelForCausalLM"


def bring_code(folder: Path, config: dict[str, Any]) -> None:
    """Copy the code into the folder and name it in `config`, the content of its `config.json`.

    A model that has code of its own keeps that: transformers would not run both.
    """
    classes = config.get("auto_map") or {}
    if _AUTO_CLASS in classes and not _is_ours(classes[_AUTO_CLASS]):
        return
    shutil.copyfile(_FILE, folder / _FILE.name)
    config["auto_map"] = {**classes, _AUTO_CLASS: _NAMED}


def forget_code_(config: Any) -> None:
    """Remove the name of our code from a loaded model's configuration: what it saves may be dense, and need none."""
    classes = getattr(config, "auto_map", None)
    if isinstance(classes, dict) and _is_ours(classes.get(_AUTO_CLASS)):
        del classes[_AUTO_CLASS]
        if not classes:
            del config.auto_map


def _is_ours(named: Any) -> bool:
    # A configuration that came from a hub names the repository, too.
    return isinstance(named, str) and named.rpartition("--")[2] == _NAMED
