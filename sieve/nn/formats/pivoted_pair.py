"""The pivoted low-rank pair: the same map in r² fewer numbers, since r of its outputs are A x itself (DESIGN 2.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sieve.errors import InputError
from sieve.nn.formats.base import LayerFormat, LowRankFormat
from sieve.nn.formats.pair import Pair
from sieve.nn.low_rank import PivotedLinear
from sieve.nn.pivot import rounded_pivot
from sieve_kernels.lowrank.checks import is_permutation

_INDEX_BYTES = 8  # of an entry of the permutation


@dataclass(frozen=True)
class PivotedPair(LowRankFormat):
    """A.weight [r, n], C.weight [m - r, r], permutation [m] int64 and bias [m]: r (m + n - r) numbers, which is less
    than the matrix at every rank below full."""

    name: ClassVar[str] = "pivoted_pair"
    modules: ClassVar = (PivotedLinear,)

    @classmethod
    def summary(cls, layers: Sequence[LayerFormat]) -> str:
        return (
            f"{len(layers)} of its weight matrices are low-rank pairs, stored pivoted; `config.json` holds their ranks."
        )

    @classmethod
    def numel(cls, m: int, n: int, rank: int) -> int:
        return rank * (m + n - rank)

    @classmethod
    def max_rank(cls, m: int, n: int) -> int:
        return min(m, n) - 1

    @classmethod
    def rank_of(cls, m: int, n: int, numel: float) -> float:
        # The smaller root of r² - (m + n) r + numel = 0, in the form that does not cancel.
        return 2 * numel / (m + n + math.sqrt(max((m + n) ** 2 - 4 * numel, 0)))

    def nbytes(self, m: int, n: int, itemsize: int) -> int:
        return super().nbytes(m, n, itemsize) + _INDEX_BYTES * m

    @classmethod
    def of(cls, module: PivotedLinear) -> PivotedPair:
        return cls(module.rank, True if module.bias is not None else None)

    def module(
        self, m: int, n: int, bias: bool, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> PivotedLinear:
        if self.rank > m:
            raise InputError(f"a pair of rank {self.rank} with {m} outputs cannot be stored pivoted")
        return PivotedLinear(n, m, self.rank, bool(bias or self.bias), device=device, dtype=dtype)

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
        A, C, permutation = rounded_pivot(A, B, module.A.weight.dtype, gram, energy)
        module.A.weight.copy_(A)
        module.C.weight.copy_(C)
        module.permutation.copy_(permutation)
        if bias is not None:
            module.bias.copy_(bias)

    @torch.no_grad()
    def factors(self, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """With the rows of the identity among those of C: exactly the same map."""
        A, C = module.A.weight, module.C.weight
        B = torch.empty(module.out_features, module.rank, device=C.device, dtype=C.dtype)
        B[module.permutation] = torch.cat([torch.eye(module.rank, device=C.device, dtype=C.dtype), C])
        return A, B, module.bias

    def check(self, module: nn.Module, name: str) -> str | None:
        order = module.permutation
        if order.dtype == torch.int64 and order.shape == (module.out_features,) and is_permutation(order):
            return None
        return f"the permutation of {name} does not hold each of 0 to {module.out_features - 1} once"


def pair_format(pivoted: bool) -> type[LowRankFormat]:
    """The format in which a plan's pairs are stored."""
    return PivotedPair if pivoted else Pair
