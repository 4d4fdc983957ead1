"""Model families: which of their modules run as our operators do. A new family is a row in `FAMILIES`."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

Kind = Literal["mlp", "norm", "attention"]
_SUFFIXES: dict[str, Kind] = {"MLP": "mlp", "RMSNorm": "norm", "Attention": "attention"}

ACTIVATIONS = {
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "ReLU": "relu",
}
"""The operator's name of an activation, by the class that transformers has for it."""


@dataclass(frozen=True)
class Family:
    """What the modules of a family do in transformers, and nothing else.

    mlp: `…MLP` is down_proj(act_fn(gate_proj(x)) * up_proj(x)).
    norm: `…RMSNorm` is weight · (x / √(mean x² + variance_epsilon)).
    attention: `…Attention` calls the `apply_rotary_pos_emb` of its Python module.
    """

    mlp: bool = True
    norm: bool = True
    attention: bool = True


FAMILIES = {
    "Llama": Family(),
    "Mistral": Family(),
    "Qwen2": Family(),
    "Qwen3": Family(),
    "SmolLM3": Family(),
    "Phi3": Family(mlp=False),
    "Gemma": Family(norm=False, attention=False),
    "Gemma2": Family(norm=False, attention=False),
    "Gemma3": Family(norm=False, attention=False),
}
"""By the prefix of the family's class names."""


def family_of(model: nn.Module) -> Family | None:
    """The row of a model, by the class of its decoder blocks; None: it has none."""
    names = {type(module).__name__ for module in model.modules()}
    return next((family for prefix, family in FAMILIES.items() if f"{prefix}DecoderLayer" in names), None)


def kind_of(module: nn.Module) -> Kind | None:
    """What the module is, if its family is known to compute just that."""
    return _KINDS.get(type(module).__name__)


_KINDS = {
    f"{prefix}{suffix}": kind
    for prefix, family in FAMILIES.items()
    for suffix, kind in _SUFFIXES.items()
    if getattr(family, kind)
}
