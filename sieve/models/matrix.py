"""A weight matrix that can be pruned, and what a rank of it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sieve.nn.formats.base import LowRankFormat

DENSE: Literal["dense"] = "dense"


@dataclass(frozen=True)
class Matrix:
    """A prunable weight W [m, n] of a model: `nn.Linear(n, m)`, or GPT-2's Conv1D.

    `name` is the module's dotted name, `block` the index of the decoder block that holds it. `pivoted` is how its pair
    will be stored, and so what a rank costs: see `format`.
    """

    name: str
    m: int
    n: int
    block: int
    pivoted: bool = False

    @property
    def format(self) -> type[LowRankFormat]:
        """The format of its pair."""
        from sieve.nn.formats.pivoted_pair import pair_format  # the command line reads this file before torch

        return pair_format(self.pivoted)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers that its rank decides."""
        return (self.name,)

    @property
    def parameters(self) -> int:
        return self.m * self.n

    @property
    def limit(self) -> int:
        """The largest number that a plan may give this matrix."""
        return min(self.m, self.n)

    @property
    def max_rank(self) -> int:
        """The largest rank whose pair is smaller than W (the break-even of DESIGN 2.1)."""
        return self.format.max_rank(self.m, self.n)

    def rank_at(self, kept: float, multiple: int = 1) -> int | Literal["dense"]:
        """The rank that keeps the fraction `kept` of W's parameters, rounded up to `multiple` (at least one of it).

        "dense" where the pair would not be smaller than W. The inverse of `size`.
        """
        exact = self.format.rank_of(self.m, self.n, kept * self.parameters)
        rank = max(math.ceil(round(exact / multiple, 6)), 1) * multiple
        return rank if rank <= self.max_rank else DENSE

    def size(self, rank: int | Literal["dense"]) -> int:
        """Parameters stored at this rank."""
        if rank == DENSE:
            return self.parameters
        return self.format.numel(self.m, self.n, rank)

    def stand_in(
        self, rank: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> nn.Module:
        """A layer that takes as long as the matrix at this rank, without values."""
        return self.format(rank).module(self.m, self.n, False, device, dtype)

    def nbytes(self, rank: int | Literal["dense"], itemsize: int) -> int:
        """Bytes stored at this rank, in a dtype of so many."""
        if rank == DENSE:
            return self.parameters * itemsize
        return self.format(rank).nbytes(self.m, self.n, itemsize)
