"""The sizes that masking allows for a matrix, and their costs."""

import math
from dataclasses import dataclass
from typing import Literal

from sieve.compression.masks.config import PATTERNS
from sieve.models.matrix import DENSE, Matrix


@dataclass(frozen=True)
class MaskedMatrix(Matrix):
    """A prunable weight W [m, n] that will be masked.

    Its "rank" in a plan is the number of weights that a row keeps: r m in all. If weights compete within the whole
    layer, it is the mean over rows. A mask saves parameters at every rank below n.

    pattern: a name in `PATTERNS`. N:M has a single rank, n N / M; if M does not divide n, the matrix stays dense.
    shift: how much more than the plan's kept fraction this matrix keeps, by a ramp of half-width `ramp`.
    """

    pattern: str = "unstructured"
    shift: float = 0.0
    ramp: float = 0.0

    @property
    def max_rank(self) -> int:
        if self.pattern == "unstructured":
            return self.n - 1
        kept, of = PATTERNS[self.pattern]
        return self.n // of * kept if self.n % of == 0 else 0

    @property
    def limit(self) -> int:
        return self.n - 1

    def rank_at(self, kept: float, multiple: int = 1) -> int | Literal["dense"]:
        """Weights a row keeps at the fraction `kept`, rounded up to `multiple` (at least one of it).

        With a ramp, the fraction is shifted first; the ramp is flatter if it would leave [0, 1], so that the mean over
        matrices stays. N:M always has the same rank, unless everything is kept.
        """
        if self.pattern != "unstructured":
            return self.max_rank if self.max_rank > 0 and kept < 1 else DENSE
        if self.ramp:
            kept += self.shift * min(1.0, kept / self.ramp, max(1 - kept, 0) / self.ramp)
        rank = max(math.ceil(round(kept * self.n / multiple, 6)), 1) * multiple
        return rank if rank <= self.max_rank else DENSE

    def size(self, rank: int | Literal["dense"]) -> int:
        """Number of weights that are not masked."""
        return self.parameters if rank == DENSE else rank * self.m
