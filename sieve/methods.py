"""The methods by name: what each asks of calibration, where it is, and what it can do.

The one table that calibration, projection, recipes, the command line and benchmarks read. It imports nothing, so that
the earliest stage can know of the latest.
"""

from dataclasses import dataclass
from typing import Literal

from sieve.errors import InputError


@dataclass(frozen=True)
class Method:
    """One way to prune.

    solver: "module:function". Of a projection: (W, `Problem`) → A, B, energy (`sieve.projections.problem`).
    side: which Gram matrices it asks for: "cheapest" leaves the side to us, since C_y = W C Wᵀ follows from either;
        "input": one for the inputs of every matrix; "none": no Gram matrices, the calibration texts alone.
    gradients: it also asks for the loss's gradients at the outputs, and for examples to choose by.
    nested: one pair of factors serves every rank, so that a search can use it.
    """

    solver: str
    side: Literal["cheapest", "input", "none"] = "cheapest"
    gradients: bool = False
    nested: bool = True

    @property
    def kind(self) -> str:
        """What calibration collects for it; equal kinds are interchangeable."""
        return f"{self.side}+gradients" if self.gradients else self.side


METHODS = {
    "output_aligned": Method("sieve.projections.output_aligned:solve"),
    "loss_aware": Method("sieve.projections.loss_aware:solve", gradients=True),
}

NESTED = tuple(name for name, method in METHODS.items() if method.nested)
"""Those that `sieve prune` can search with."""


def method_named(name: str) -> Method:
    """InputError for a name that is not in the table."""
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
