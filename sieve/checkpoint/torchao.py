"""Pruned models whose layers torchao has quantised: saved as torchao flattens its tensors, and loaded by its quantizer.

Nothing here imports torchao unless a model or a folder has its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sieve.errors import InputError
from sieve.nn.narrow import LINEAR
from sieve.utils.messages import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TorchAoConfig
    from transformers.quantizers.base import HfQuantizer


def first_quantized(model: nn.Module) -> str | None:
    """The name of the first parameter that another library's tensor has taken the place of; None: there is none."""
    return next((name for name, one in model.named_parameters() if type(one.data) is not torch.Tensor), None)


def flattened(model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of the model as plain ones by name, and the metadata that says what they are parts of.

    Raises: InputError for a quantised tensor that torchao has no file format for.
    """
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    try:
        return flatten_tensor_state_dict(model.state_dict())
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{first_quantized(model)} is quantised in a way that cannot be saved ({one_line(error)}): save the model "
            "first and quantise what you load, or use `sieve.quantize_`, `sieve prune --quantize int8`"
        ) from None


def untie_(model: PreTrainedModel) -> None:
    """Write into the configuration that head and embedding are not one table, if only one of them is quantised."""
    config = model.config.get_text_config(decoder=True)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if getattr(config, "tie_word_embeddings", False) and head is not None and head.weight is not table.weight:
        config.tie_word_embeddings = model.config.tie_word_embeddings = False


def reader(files: Sequence[str], config: Any) -> HfQuantizer | None:
    """Transformers' quantizer that puts torchao's tensors together again; None: the weight files hold none.

    Raises: InputError where torchao is not installed, or another version that cannot read them.
    """
    from safetensors import safe_open

    # torchao lists its tensors in the files' metadata.
    metadata: dict[str, str] = {}
    for file in files:
        if str(file).endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                metadata |= opened.metadata() or {}
    if "tensor_names" not in metadata:
        return None
    try:
        from torchao.prototype.safetensors.safetensors_utils import is_metadata_torchao
        from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer
    except ImportError as error:
        raise InputError(
            f"the model's layers are quantised by torchao, which cannot be used here ({one_line(error)}): "
            "`pip install torchao`"
        ) from None
    if not is_metadata_torchao(metadata):
        kinds = sorted({str(json.loads(metadata[name])["_type"]) for name in json.loads(metadata["tensor_names"])})
        raise InputError(f"this torchao cannot read the model's tensors ({', '.join(kinds)}): install the newest one")
    # Not by its constructor, which in earlier versions asks for a TorchAoConfig: the metadata alone say what is stored.
    found = TorchAoHfQuantizer.__new__(TorchAoHfQuantizer)
    found.quantization_config, found.pre_quantized, found.metadata = config, True, metadata
    return found


def settle_(model: PreTrainedModel) -> None:
    """Remove what loading torchao's tensors has left behind, so that the model can be saved and copied again."""
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        # They have no way back; `flattened` takes the tensors apart.
        model._weight_conversions = [
            one for one in conversions if not any(hasattr(op, "hf_quantizer") for op in getattr(one, "operations", ()))
        ]
    for layer in model.modules():
        # A method that is bound to one layer cannot be pickled or copied.
        layer.__dict__.pop("extra_repr", None)


def quantize_loaded_(model: PreTrainedModel, config: TorchAoConfig) -> None:
    """Quantise a loaded model's linear layers, the factors of pairs among them, as `config` says; in place.

    As transformers does for dense models, the output head stays as it is unless `modules_to_not_convert` is given.

    Raises: InputError for a configuration that includes the embeddings, or a model that is quantised already.
    """
    from torchao.quantization import FqnToConfig, quantize_
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    if (already := first_quantized(model)) is not None:
        raise InputError(f"the model is quantised already ({already}): leave quantization_config out")
    if config.include_input_output_embeddings:
        raise InputError("a pruned model's embeddings are not quantised while it loads: quantise the loaded model")
    kind = config.get_apply_tensor_subclass()
    skipped = HfQuantizer.get_modules_to_not_convert(model, config.modules_to_not_convert, model._keep_in_fp32_modules)

    def wanted(layer: nn.Module, name: str) -> bool:
        return type(layer) in LINEAR and layer.weight.numel() > 0 and should_convert_module(name, skipped)

    quantize_(model, kind, filter_fn=None if isinstance(kind, FqnToConfig) else wanted)
