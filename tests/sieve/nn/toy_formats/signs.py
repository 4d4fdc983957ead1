"""A toy format, the signs of a matrix and a scale for each row: a new format is one file."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sieve.nn.formats.base import LayerFormat


class SignLinear(nn.Module):
    """y = scale · (x signsᵀ); signs int8 [m, n], scale [m]."""

    def __init__(self, m, n, device=None, dtype=None):
        super().__init__()
        self.register_buffer("signs", torch.ones(m, n, dtype=torch.int8, device=device))
        self.scale = nn.Parameter(torch.ones(m, device=device, dtype=dtype))

    def forward(self, x):
        return x @ self.signs.to(x.dtype).T * self.scale


@dataclass(frozen=True)
class Signs(LayerFormat):
    name: ClassVar[str] = "signs"
    modules: ClassVar = (SignLinear,)

    note: str = ""

    @classmethod
    def summary(cls, layers):
        return f"{len(layers)} of its weight matrices are signs."

    @classmethod
    def of(cls, module):
        return cls()

    def module(self, m, n, bias, device=None, dtype=None):
        return SignLinear(m, n, device, dtype)

    def check(self, module, name):
        return None if bool((module.signs.abs() == 1).all()) else f"the signs of {name} are none"
