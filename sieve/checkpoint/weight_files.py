"""Where the weights of a pruned model lie, so that transformers without Sieve fails and makes no random model of them.

Transformers fills what it does not find with random numbers, and says so in a warning. So `sieve.save` names the
weights of a model with pruned layers `sieve.safetensors`, which only our quantizer looks for: others miss
`model.safetensors`. What the model's own `save_pretrained` writes keeps its usual name, which training tools ask for;
there `config.json` asks for a file that does not exist, unless our quantizer takes that back.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.utils.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ABSENT = "import-sieve-first.safetensors"
"""A file that no folder has: its name is what the error shows."""

_KEY = "transformers_weights"  # of config.json: what transformers loads in the place of model.safetensors
_USUAL, _OURS = "model", "sieve"
_NAME = re.compile(r"[\w-][\w.-]*\.safetensors(\.index\.json)?")


def is_weight_file(name: Any) -> bool:
    """Whether it is the name of a file of weights, or of the index of several, in the folder itself."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def take_over(folder: Path) -> None:
    """Rename the weights that transformers has written to `folder`, and have `config.json` say so."""
    index = folder / f"{_USUAL}.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["weight_map"] = {name: _renamed(file) for name, file in content["weight_map"].items()}
        write_json(folder / _renamed(index.name), content)
        index.unlink()
    for file in folder.glob(f"{_USUAL}*.safetensors"):
        file.rename(folder / _renamed(file.name))
    config = folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop(_KEY, None)
    name = _renamed(index.name)
    content["quantization_config"]["weights"] = name if (folder / name).is_file() else f"{_OURS}.safetensors"
    _write_config(config, content)


def guard_saving_(model: PreTrainedModel, needs_sieve: bool) -> None:
    """From now on what `model.save_pretrained` writes loads with Sieve alone; undone where it needs no Sieve."""
    if needs_sieve:
        # A partial of a function at the top level, so that the model can be pickled and copied.
        model.__dict__.setdefault("save_pretrained", partial(_save_pretrained, model))
    elif isinstance(own := model.__dict__.get("save_pretrained"), partial) and own.func is _save_pretrained:
        del model.save_pretrained


def _save_pretrained(model: PreTrainedModel, save_directory: str | Path, *args: Any, **options: Any) -> None:
    """As the class has it; `config.json` then asks for `ABSENT`."""
    config = model.config

    def save_config(directory: str | Path, *args: Any, **options: Any) -> None:
        del config.__dict__["save_pretrained"]
        config.save_pretrained(directory, *args, **options)
        file = Path(directory) / "config.json"
        _write_config(file, json.loads(file.read_text(encoding="utf-8")) | {_KEY: ABSENT})

    # Here, and not afterwards: with push_to_hub the files are sent before the call returns.
    config.__dict__["save_pretrained"] = save_config
    try:
        type(model).save_pretrained(model, save_directory, *args, **options)
    finally:
        config.__dict__.pop("save_pretrained", None)
    # What `sieve.save` wrote there before is no longer this model.
    for file in Path(save_directory).glob(f"{_OURS}*.safetensors*"):
        file.unlink()


def _renamed(name: str) -> str:
    return name.replace(_USUAL, _OURS, 1)


def _write_config(file: Path, content: dict[str, Any]) -> None:
    """As transformers writes it."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
