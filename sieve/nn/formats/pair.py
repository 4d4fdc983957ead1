"""The plain low-rank pair: two products, y = B (A x) + bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sieve.nn.formats.base import LayerFormat, LowRankFormat
from sieve.nn.low_rank import LowRankLinear


@dataclass(frozen=True)
class Pair(LowRankFormat):
    """A.weight [r, n], B.weight [m, r] and B.bias [m]: r (m + n) numbers, fewer than the matrix has up to the
    break-even of DESIGN 2.1."""

    name: ClassVar[str] = "pair"
    modules: ClassVar = (LowRankLinear,)

    @classmethod
    def summary(cls, layers: Sequence[LayerFormat]) -> str:
        return f"{len(layers)} of its weight matrices are low-rank pairs; `config.json` holds their ranks."

    @classmethod
    def numel(cls, m: int, n: int, rank: int) -> int:
        return rank * (m + n)

    @classmethod
    def max_rank(cls, m: int, n: int) -> int:
        return max((m * n - 1) // (m + n), 0)

    @classmethod
    def rank_of(cls, m: int, n: int, numel: float) -> float:
        return numel / (m + n)

    @classmethod
    def of(cls, module: LowRankLinear) -> Pair:
        return cls(module.rank, True if module.bias is not None else None)

    def module(
        self, m: int, n: int, bias: bool, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LowRankLinear:
        return LowRankLinear(n, m, self.rank, bool(bias or self.bias), device=device, dtype=dtype)

    @torch.no_grad()
    def fill_(
        self,
        module: nn.Module,
        A: torch.Tensor,
        B: torch.Tensor,
        bias: torch.Tensor | None = None,
        gram: torch.Tensor | None = None,
        energy: torch.Tensor | None = None,
    ) -> None:
        module.A.weight.copy_(A)
        module.B.weight.copy_(B)
        if bias is not None:
            module.B.bias.copy_(bias)

    def factors(self, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return module.A.weight, module.B.weight, module.B.bias
