"""The narrow matrix: a dense one without some of its rows or columns, in an MLP that has lost channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sieve.errors import InputError
from sieve.nn.formats.base import LayerFormat
from sieve.nn.narrow import NarrowLinear
from sieve.utils.messages import shorten


@dataclass(frozen=True)
class Narrow(LayerFormat):
    """weight [m', n'] and bias [m'], with m' = `outputs` and n' = `inputs` where the layer has lost some.

    bias: whether there is one; None: if the dense layer has.
    """

    name: ClassVar[str] = "narrow"
    modules: ClassVar = (NarrowLinear,)

    inputs: int
    outputs: int
    bias: bool | None = None

    def __post_init__(self) -> None:
        for what, size in (("inputs", self.inputs), ("outputs", self.outputs)):
            if type(size) is not int or size < 1:
                raise InputError(f"its {what} must be a whole number from 1 up, got {shorten(size)}")
        if self.bias is not None and type(self.bias) is not bool:
            raise InputError(f"its bias must be true or false, got {shorten(self.bias)}")

    @classmethod
    def summary(cls, layers: Sequence[LayerFormat]) -> str:
        return f"{len(layers)} matrices of its MLPs have lost hidden channels; `config.json` holds their sizes."

    @classmethod
    def of(cls, module: NarrowLinear) -> Narrow:
        return cls(module.in_features, module.out_features, True if module.bias is not None else None)

    def module(
        self, m: int, n: int, bias: bool, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> nn.Module:
        if self.outputs > m or self.inputs > n:
            raise InputError(f"a layer of {self.outputs} x {self.inputs} is no part of one of {m} x {n}")
        return NarrowLinear(self.inputs, self.outputs, bool(bias or self.bias), device=device, dtype=dtype)
