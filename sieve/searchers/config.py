"""What a user can choose about a search beyond its name."""

from dataclasses import dataclass

from sieve.errors import InputError
from sieve.searchers.engine.config import EngineConfig
from sieve.utils.messages import shorten

OBJECTIVES = ("parameters", "bytes", "latency")
GRANULARITIES = ("matrix", "group", "block")
SMALLEST_TOLERANCE = 1e-6  # a millionth of the accuracy, which no number of examples resolves


@dataclass(frozen=True)
class Options(EngineConfig):
    """Of `ga`, `pareto` and `budget`; `uniform` knows `kept` alone. The engine's switches are among them.

    objective: what is to become small: "parameters", "bytes" or "latency" (seconds per layer, measured on this
        machine; pairs that are not faster than their matrix stay dense).
    kept: fraction of it that may stay: "best at this size" in the place of "smallest within the
        tolerance". None: the latter.
    granularity: what one gene is: "matrix", "group" (q/k/v; gate/up) or "block".
    paper: the constants of DESIGN 2.9 in the place of ours (`ga` only).
    population, offspring, generations: of the genetic searches; None for the searcher's own.
    budget: layer-tokens after which no new generation begins; None for no such limit.
    bottlenecks: of the winner's matrices, how many are tested for being one; 0 tests none.
    """

    objective: str = "parameters"
    kept: float | None = None
    granularity: str = "matrix"
    paper: bool = False
    population: int | None = None
    offspring: int | None = None
    generations: int | None = None
    budget: int | None = None
    bottlenecks: int = 16

    def check(self) -> "Options":
        """InputError for a value that could not work; returns the options themselves."""
        if self.kept is not None and not 0 < self.kept < 1:
            raise InputError(f"--kept must be between 0 and 1, got {self.kept}: 0.5 keeps half the prunable parameters")
        if self.objective not in OBJECTIVES:
            raise InputError(f"unknown objective {shorten(self.objective)}: choose one of {', '.join(OBJECTIVES)}")
        if self.granularity not in GRANULARITIES:
            raise InputError(
                f"unknown granularity {shorten(self.granularity)}: choose one of {', '.join(GRANULARITIES)}"
            )
        for name in ("population", "offspring", "generations", "budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}")
        if self.population == 1:
            raise InputError("--population must be at least 2: one candidate has nobody to be compared with")
        if self.bottlenecks < 0:
            raise InputError("--bottlenecks must not be negative")
        super().check()
        return self


def check_tolerance(tolerance: float) -> None:
    """InputError for a tolerance outside [0, 1)."""
    if not 0 <= tolerance < 1:
        raise InputError(
            f"the tolerance must be in [0, 1), got {shorten(tolerance)}: 0.05 means 5 % of the dense accuracy"
        )
    if 0 < tolerance < SMALLEST_TOLERANCE:
        raise InputError(
            f"the tolerance must be 0, or from {SMALLEST_TOLERANCE:g} to below 1, got {tolerance:g}: 0 demands an "
            "accuracy that is not lower at all"
        )
