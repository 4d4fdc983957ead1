"""What a search decides: a rank for each matrix, or "dense"; and what that costs in parameters."""

import json
from collections.abc import Iterable, Mapping
from typing import Literal

from sieve.errors import InputError
from sieve.models.matrix import DENSE, Matrix
from sieve.utils.messages import shorten


class Plan(dict[str, "int | Literal['dense']"]):
    """Matrix name → rank or "dense". A matrix that is absent stays dense. JSON round trip.

    `pivoted` says how `sieve.apply_` is to store the pairs; it is True by itself for a copy of a pivoted plan. What
    a plan costs is asked of `matrices`, which know it too (`prunable(model, pivoted)`). In JSON it is one more key.
    """

    def __init__(
        self,
        ranks: Mapping[str, int | str] | Iterable[tuple[str, int | str]] = (),
        /,
        *,
        pivoted: bool | None = None,
        **more: int | str,
    ):
        super().__init__(ranks, **more)
        self.pivoted: bool = getattr(ranks, "pivoted", False) if pivoted is None else pivoted

    def to_json(self) -> str:
        return json.dumps({"pivoted": True, **self} if self.pivoted else self, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        try:
            plan = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"the plan is not JSON: {error}") from None
        if not isinstance(plan, dict):
            raise InputError("the plan must be a JSON object of matrix name → rank or 'dense'")
        return cls(plan, pivoted=bool(plan.pop("pivoted", False)))

    @classmethod
    def uniform(cls, matrices: Iterable[Matrix], kept: float, multiple: int = 1) -> "Plan":
        """Every matrix at the same kept fraction; dense above break-even. Pivoted if the matrices are."""
        matrices = list(matrices)
        ranks = {matrix.name: matrix.rank_at(kept, multiple) for matrix in matrices}
        return cls(ranks, pivoted=any(matrix.pivoted for matrix in matrices))

    def check(self, matrices: Mapping[str, Matrix]) -> None:
        """InputError unless every entry names one of `matrices` and a rank that it can have."""
        for name, rank in self.items():
            if name not in matrices:
                raise InputError(f"the plan names {shorten(name, 120)}, which is not a prunable matrix of this model")
            matrix = matrices[name]
            if rank != DENSE and not (type(rank) is int and 1 <= rank <= matrix.limit):
                raise InputError(
                    f"the plan gives {name} the rank {shorten(rank)}: use 'dense' or a whole number in 1…{matrix.limit}"
                )

    def ranks(self) -> dict[str, int]:
        """The matrices that become pairs."""
        return {name: rank for name, rank in self.items() if rank != DENSE}

    def kept(self, matrices: Mapping[str, Matrix]) -> dict[str, float]:
        """Kept fraction of each matrix, p = size / (m n), 1 where dense."""
        return {
            layer: matrix.size(self.get(name, DENSE)) / matrix.parameters
            for name, matrix in matrices.items()
            for layer in matrix.names
        }

    def size(self, matrices: Mapping[str, Matrix]) -> int:
        """Parameters that the prunable matrices have under this plan."""
        return sum(m.size(self.get(name, DENSE)) for name, m in matrices.items())

    def prunable_removed(self, matrices: Mapping[str, Matrix]) -> float:
        """Fraction of the prunable matrices' parameters that this plan removes."""
        return 1 - self.size(matrices) / sum(m.parameters for m in matrices.values())
