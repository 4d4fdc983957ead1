"""Low-rank adapters by peft, on the linear layers inside the blocks: the factors of pairs, and dense matrices.

Merged into a factor, an adapter leaves a pair of the same rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sieve.errors import InputError
from sieve.nn.formats.masked import masked_layers
from sieve.nn.narrow import LINEAR

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANK = 16
_ALPHA = 32


def adapter_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters of the model's adapters; empty if it has none."""
    return {name: one for name, one in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def require_adaptable(model: PreTrainedModel) -> None:
    """InputError if the model cannot be healed by adapters: peft is missing, or its weights must keep zeros."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise InputError("healing by adapters needs peft: pip install peft, or heal all parameters") from None
    if masked_layers(model):
        raise InputError("adapters fill the zeros of masks once they are merged: heal all parameters instead")
    if adapter_parameters(model):
        raise InputError("the model has adapters already: merge them (`model.merge_and_unload()`), or take them off")


def add_adapters_(model: PreTrainedModel, seed: int) -> None:
    """Put an adapter on every linear layer inside the blocks; at first they change nothing."""
    from peft import LoraConfig, inject_adapter_in_model

    from sieve.models.linears import decoder_blocks

    prefix, blocks = decoder_blocks(model)
    names = [f"{prefix}.{name}" for name, layer in blocks.named_modules() if type(layer) in LINEAR]
    config = LoraConfig(r=RANK, lora_alpha=_ALPHA, target_modules=names)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


@torch.no_grad()
def merge_adapters_(model: PreTrainedModel) -> None:
    """Add every adapter to its weight, and remove it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
