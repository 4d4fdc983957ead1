"""Names of a pruned model's weight files: without Sieve, transformers must fail, not make a random model.

Transformers fills missing weights with random numbers, and only warns. So `sieve.save` names the weights of a model
with pruned layers `sieve.safetensors`, which only our quantizer looks for; without it `model.safetensors` is missing.
The model's own `save_pretrained` keeps the usual name, which training tools need. There `config.json` asks for a file
that does not exist, unless our quantizer removes this entry.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.checkpoint.brought_code import bring_code
from sieve.checkpoint.torchao import first_quantized
from sieve.utils.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ABSENT = "import-sieve-first.safetensors"
"""A file that never exists: its name appears in the error message and says what to do."""

# Key of config.json for the file that transformers loads instead of model.safetensors.
_KEY = "transformers_weights"
_USUAL, _OURS = "model", "sieve"
_NAME = re.compile(r"[\w-][\w.-]*\.safetensors(\.index\.json)?")


def is_weight_file(name: Any) -> bool:
    """Whether this is the name of a weights file, or of an index of several, in the folder itself."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def take_over(folder: Path) -> None:
    """Rename the weights that transformers has written to `folder`, and write the new name into `config.json`."""
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
    bring_code(folder, content)
    _write_config(config, content)


def guard_saving_(model: PreTrainedModel, needs_sieve: bool) -> None:
    """Make the files of `model.save_pretrained` loadable only with Sieve; undo this if Sieve is not needed."""
    if needs_sieve:
        # A partial of a function at the top level, so that the model can be pickled and copied.
        model.__dict__.setdefault("save_pretrained", partial(_save_pretrained, model))
    elif isinstance(own := model.__dict__.get("save_pretrained"), partial) and own.func is _save_pretrained:
        del model.save_pretrained


def _save_pretrained(model: PreTrainedModel, save_directory: str | Path, *args: Any, **options: Any) -> None:
    """The class's `save_pretrained`, after which `config.json` asks for `ABSENT`."""
    from sieve.checkpoint.stamp import Stamp

    config = model.config

    def save_config(directory: str | Path, *args: Any, **options: Any) -> None:
        del config.__dict__["save_pretrained"]
        config.save_pretrained(directory, *args, **options)
        file = Path(directory) / "config.json"
        content = json.loads(file.read_text(encoding="utf-8")) | {_KEY: ABSENT}
        bring_code(file.parent, content)
        _write_config(file, content)

    # Change the file inside the call: with push_to_hub the files are sent before the call returns.
    config.__dict__["save_pretrained"] = save_config
    # A state dict that a trainer gives is saved as it is, unless torchao's tensors need another form.
    stamped = first_quantized(model) is not None and getattr(model, "hf_quantizer", None) is None
    if stamped:
        model.hf_quantizer = Stamp({})
    try:
        type(model).save_pretrained(model, save_directory, *args, **options)
    finally:
        config.__dict__.pop("save_pretrained", None)
        if stamped:
            del model.hf_quantizer
    # Remove weights that `sieve.save` wrote there before: they are no longer this model's.
    for file in Path(save_directory).glob(f"{_OURS}*.safetensors*"):
        file.unlink()


def _renamed(name: str) -> str:
    return name.replace(_USUAL, _OURS, 1)


def _write_config(file: Path, content: dict[str, Any]) -> None:
    """Write the file as transformers does."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
