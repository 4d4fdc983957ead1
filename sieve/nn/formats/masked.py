"""A masked matrix: a dense layer some of whose weights are zeros, stored like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sieve.errors import InputError
from sieve.nn.formats.base import LayerFormat
from sieve.utils.messages import shorten


@dataclass(frozen=True)
class Masked(LayerFormat):
    """Weights of which some are zero.

    kept: the fraction that is not, in (0, 1). pattern: "unstructured", "2:4" or "4:8".
    """

    name: ClassVar[str] = "mask"

    kept: float
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        if not isinstance(self.kept, float) or not 0 < self.kept < 1:
            raise InputError(f"it keeps {shorten(self.kept)} of its weights, which must be between 0 and 1")
        if not isinstance(self.pattern, str):
            raise InputError(f"its pattern must be a name, got {shorten(self.pattern)}")

    @classmethod
    def summary(cls, layers: Sequence[Masked]) -> str:
        zeros = 1 - sum(layer.kept for layer in layers) / len(layers)
        return (
            f"{len(layers)} of its weight matrices are masked: {zeros:.1%} of their weights on average are zeros, kept "
            "like any other; `config.json` says what each matrix keeps. Training and merged adapters fill zeros."
        )


def masked_layers(model: nn.Module) -> dict[str, Masked]:
    """The matrices that `model.config` says are masked: modules alone do not tell."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    layers = getattr(config, "layers", None)
    return {name: one for name, one in layers.items() if isinstance(one, Masked)} if isinstance(layers, dict) else {}
