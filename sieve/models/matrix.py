"""A weight matrix that can be pruned, and what a rank of it costs."""

import math
from dataclasses import dataclass
from typing import Literal

DENSE: Literal["dense"] = "dense"


@dataclass(frozen=True)
class Matrix:
    """A prunable weight W [m, n] of a model: `nn.Linear(n, m)`, or GPT-2's Conv1D.

    `name` is the module's dotted name, `block` the index of the decoder block that holds it. `pivoted` is how its pair
    will be stored, and so what a rank costs: r (m + n) numbers, pivoted r (m + n - r) (DESIGN 2.6).
    """

    name: str
    m: int
    n: int
    block: int
    pivoted: bool = False

    @property
    def parameters(self) -> int:
        return self.m * self.n

    @property
    def limit(self) -> int:
        """The largest number that a plan may give this matrix."""
        return min(self.m, self.n)

    @property
    def max_rank(self) -> int:
        """The largest rank whose pair is smaller than W: r (m + n) < m n (the break-even of DESIGN 2.1).

        A pivoted pair saves (m - r) (n - r) parameters: something at every rank below full.
        """
        if self.pivoted:
            return min(self.m, self.n) - 1
        return max((self.parameters - 1) // (self.m + self.n), 0)

    def rank_at(self, kept: float, multiple: int = 1) -> int | Literal["dense"]:
        """The rank that keeps the fraction `kept` of W's parameters, rounded up to `multiple` (at least one of it).

        "dense" where the pair would not be smaller than W. The inverse of `size`.
        """
        sides, wanted = self.m + self.n, kept * self.parameters
        # Pivoted, the smaller root of r² - (m + n) r + wanted = 0, in the form that does not cancel.
        exact = 2 * wanted / (sides + math.sqrt(max(sides**2 - 4 * wanted, 0))) if self.pivoted else wanted / sides
        rank = max(math.ceil(round(exact / multiple, 6)), 1) * multiple
        return rank if rank <= self.max_rank else DENSE

    def size(self, rank: int | Literal["dense"]) -> int:
        """Parameters stored at this rank."""
        if rank == DENSE:
            return self.parameters
        return rank * (self.m + self.n - (rank if self.pivoted else 0))
