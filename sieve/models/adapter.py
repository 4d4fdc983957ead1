"""Folders of peft adapters: which model they are for, and that model with the adapter on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.errors import InputError, StorageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter and no model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def read_adapter(folder: str | Path) -> dict[str, Any]:
    """Its `adapter_config.json`. Raises StorageError where that is damaged."""
    path = Path(folder) / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no table")
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read or is damaged: {error}") from None
    return config


def base_of(folder: str | Path) -> str:
    """The model that an adapter is for: a folder, looked for where it was and beside the adapter, or a hub id.

    Raises: InputError where the adapter does not name it.
    """
    named = read_adapter(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise InputError(f"the adapter {folder} does not name its base model: load the model, and the adapter by peft")
    places = (Path(named), Path(folder) / named, Path(folder).parent / Path(named).name)
    found = str(next((place for place in places if place.is_dir()), named))
    if is_adapter(found):
        raise InputError(f"the base model of the adapter {folder} is an adapter itself ({found}): merge that one first")
    return found


def report_folder(source: str | Path) -> Path:
    """Where a model's report, recipe and task are: its folder, and of an adapter that of its base model."""
    return Path(base_of(source) if is_adapter(source) else source)


def with_adapter(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """The model itself, with the adapter's layers put into it. Raises: InputError without peft."""
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError(f"{folder} is an adapter: `pip install peft` to load it") from None
    return PeftModel.from_pretrained(model, str(folder)).get_base_model().eval()
