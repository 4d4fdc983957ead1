"""Support for peft: adapters on whole pruned matrices, saving merged models, and checks of an adapter's base model.

Nothing here imports peft before the program does; then `import_hook` calls `register`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sieve.errors import InputError, StorageError
from sieve.models.adapter import ADAPTER_CONFIG, read_adapter
from sieve.models.linears import Conv1D, decoder_blocks, replace, weight_of
from sieve.nn.low_rank import PAIRS
from sieve.nn.stacked import StackedOutput
from sieve.utils.files import write_json
from sieve.utils.messages import shorten

if TYPE_CHECKING:
    from peft import PeftModel

BASE_FILE = "sieve_base.json"
"""File beside an adapter that says which pruned model it was trained on."""


def lora_targets(model: nn.Module) -> list[str]:
    """Names for `LoraConfig(target_modules=…)`: every whole matrix inside the decoder blocks, pruned or dense.

    `target_modules="all-linear"` names the factors of pruned matrices one by one instead. Matrices that are stored as
    one stack (`sieve.share_inputs_`) are named by the stack.

    Raises: InputError for a model without decoder blocks.

    Example:
        >>> config = peft.LoraConfig(target_modules=sieve.lora_targets(model), task_type="CAUSAL_LM")
    """
    return list(dict.fromkeys(name.rpartition(".")[2] for name, _ in _matrices(model)))


def register() -> None:
    """Teach the loaded peft about pruned matrices. Calling it again is harmless."""
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraModel

    if hasattr(LoraModel, "_sieve"):
        return
    LoraModel._sieve = True
    _after(LoraConfig, "__post_init__", _add_layers)
    _after(LoraModel, "_unload_and_optionally_merge", _settle)
    _after(PeftModel, "save_pretrained", _write_base)
    _after(PeftModel, "load_adapter", _check_loaded)
    _check_before(PeftModel)


def _after(owner: type, name: str, then: Callable[..., None]) -> None:
    """Make `owner.name(self, …)` call `then(self, result, …)` at its end."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        then(self, result, *args, **kwargs)
        return result

    setattr(owner, name, method)


def _check_before(peft_model: type) -> None:
    original = peft_model.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(cls: type, model: nn.Module, model_id: Any, *args: Any, **kwargs: Any) -> PeftModel:
        # Runs before the adapter's layers are put into the model.
        _check_base(model, model_id)
        return original(cls, model, model_id, *args, **kwargs)

    peft_model.from_pretrained = classmethod(from_pretrained)


def _add_layers(config: Any, _: None) -> None:
    from sieve.nn.lora import TARGETS, PrunedLoraLinear

    config._register_custom_module(dict.fromkeys(TARGETS, PrunedLoraLinear))


def _settle(tuner: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Turn pairs with merged adapters into ordinary pairs, and write their ranks into the configuration."""
    from sieve.checkpoint.folder import write_quantization_config
    from sieve.nn.lora import GrownPair

    grown = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, GrownPair)]
    for name, layer in grown:
        replace(model, name, layer.settled())
    if grown and hasattr(model, "config"):
        write_quantization_config(model)


def _write_base(adapted: PeftModel, _: None, folder: str, *args: Any, **kwargs: Any) -> None:
    """Write beside each adapter of a pruned model which model that is."""
    base = adapted.get_base_model()
    if not _is_pruned(base) or any(getattr(module, "merged", False) is True for module in base.modules()):
        return
    for config in Path(folder).rglob(ADAPTER_CONFIG):
        write_json(config.parent / BASE_FILE, {"version": 1, "matrices": _fingerprint(base)})


def _check_base(model: nn.Module, adapter: Any) -> None:
    """InputError if the folder of an adapter says that it was trained on another model."""
    folder = Path(str(adapter))
    if not (folder / ADAPTER_CONFIG).is_file():
        # The adapter comes from a hub; its tensors are checked once they are loaded.
        return
    wanted = f"the adapter {shorten(str(adapter), 120)} was trained on"
    if (folder / BASE_FILE).is_file():
        if _read_base(folder / BASE_FILE) != _fingerprint(model):
            named = read_adapter(folder).get("base_model_name_or_path")
            raise InputError(
                f"{wanted} another model ({shorten(str(named), 120)}, pruned): load that one, or remove {BASE_FILE} "
                "from the adapter if this is the same model in another format"
            )
    elif _is_pruned(model):
        named = str(read_adapter(folder).get("base_model_name_or_path") or "")
        own = str(getattr(model, "name_or_path", ""))
        if named and own and Path(named).name != Path(own).name and not _names_factors(folder):
            raise InputError(
                f"{wanted} {shorten(named, 120)}, and this is the pruned model {shorten(own, 120)}: train one on it "
                f"(to load this one all the same, name the pruned model in its {ADAPTER_CONFIG})"
            )


def _check_loaded(adapted: PeftModel, found: Any, adapter: Any, name: str, *args: Any, **kwargs: Any) -> None:
    """InputError if adapter and model do not match in their tensors: peft only warns, or says nothing."""
    if not _is_pruned(adapted.get_base_model()):
        return
    homeless = [key for key in found.unexpected_keys if ".lora_" in key]
    if homeless or found.missing_keys:
        first = (homeless or found.missing_keys)[0]
        raise InputError(
            f"the adapter {shorten(str(adapter), 120)} does not belong to this model: {len(homeless)} of its tensors "
            f"have no place here and {len(found.missing_keys)} places get no tensor ({shorten(first, 120)})"
        )


def _names_factors(folder: Path) -> bool:
    """Whether the adapter is for factors, which only a pruned model has."""
    targets = read_adapter(folder).get("target_modules")
    names = [targets] if isinstance(targets, str) else targets or []
    return any(str(one).endswith((".A", ".B", ".C")) for one in names)


def _read_base(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["matrices"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read or is damaged: {error}") from None


def _is_pruned(model: nn.Module) -> bool:
    return any(isinstance(module, PAIRS) for module in model.modules())


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and pairs inside the decoder blocks, without the layers that adapters add."""
    prefix, blocks = decoder_blocks(model)
    inside: tuple[str, ...] = ()
    for name, layer in blocks.named_modules(prefix=prefix):
        if isinstance(layer, StackedOutput) or (inside and name.startswith(inside)):
            continue
        if isinstance(layer, (nn.Linear, Conv1D, *PAIRS)) and ".lora_" not in name:
            inside = (*inside[-8:], f"{name}.")
            yield name.replace(".base_layer", ""), layer


@torch.no_grad()
def _fingerprint(model: nn.Module) -> str:
    """A digest of every matrix's shape and first row in bfloat16: it is the same for all dtypes of one model."""
    digest = hashlib.sha256()
    for name, layer in _matrices(model):
        first = layer.A if isinstance(layer, PAIRS) else layer
        row = weight_of(first)[0].to(torch.bfloat16).view(torch.int16).cpu()
        digest.update(f"{name} {type(layer).__name__} {tuple(weight_of(first).shape)}".encode())
        digest.update(row.numpy().tobytes())
    return digest.hexdigest()
