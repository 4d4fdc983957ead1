"""Model families: which of their modules run as our operators do, and what their layers are called.

A new family that also runs fast is a row in `FAMILIES`.
"""

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
    name = type(module).__name__
    for suffix, kind in _SUFFIXES.items():
        family = FAMILIES.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if family is not None and getattr(family, kind):
            return kind
    return None


LAYERS_OF_ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""What layers that read one input are called, where they are separate."""

MLP_LAYERS = {
    "down_proj": (("gate_proj", "up_proj", "gate_up_proj"), {"gate_up_proj": 2}),
    "fc2": (("fc1",), {}),
    "dense_4h_to_h": (("dense_h_to_4h",), {}),
    "c_proj": (("c_fc",), {}),
}
"""The layer of an MLP that reads its channels → those that write them, and into how many parts (gate and up in one
matrix are two)."""

LAYERS_AFTER_NONLINEARITY = (
    "o_proj", "out_proj", "c_proj", "dense", "down_proj", "fc2", "dense_4h_to_h", "fc_out",
)  # fmt: skip
"""What layers behind a non-linearity (attention is one) are called."""
