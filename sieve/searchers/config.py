"""What a user can choose about a search beyond its name."""

from dataclasses import dataclass

from sieve.errors import InputError
from sieve.utils.messages import shorten
from sieve.utils.options import option, require_values

OBJECTIVES = ("parameters", "bytes", "latency")
GRANULARITIES = ("matrix", "group", "block")
SMALLEST_TOLERANCE = 1e-6  # a millionth of the accuracy, which no number of examples resolves
_OWN = "the search's own"


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


@dataclass(frozen=True)
class Options:
    """Of `ga`, `pareto` and `budget`; `uniform` knows `kept` and, with it, `objective`.

    objective: what is to become small: "parameters", "bytes" or "latency" (seconds per layer, measured on this
        machine; pairs that are not faster than their matrix stay dense).
    kept: fraction of it that may stay: the search is for the best model of this size. None: it is for the smallest
        one within the tolerance.
    granularity: what one gene is: "matrix", "group" (q/k/v; gate/up) or "block".
    paper: the constants of DESIGN 2.9 instead of ours (`ga` only).
    population, offspring, generations: of the genetic searches; None for the searcher's own.
    budget: layer-tokens after which no new generation begins; None for no such limit.
    racing: a candidate that cannot win is not asked the remaining examples.
    surrogate: predicted losses choose which candidates are evaluated. Without it `budget` has nothing to go by.
    bottlenecks: of the winner's matrices, how many are tested for being one; 0 tests none.
    """

    GROUP = "Search"

    objective: str = option("parameters", "What the search makes small", choices=OBJECTIVES, group="Size")
    kept: float | None = option(
        None,
        "Keep this fraction of the size, and lose as little as possible",
        within="(0, 1)",
        hint="0.5 keeps half of the prunable parameters",
        group="Size",
    )
    granularity: str = option("matrix", "What the search gives a rank of its own", choices=GRANULARITIES)
    paper: bool = option(False, "Use the LLM-Sieve paper's constants (with --search ga)")
    population: int | None = option(
        None,
        "Candidates that a genetic search keeps",
        within="[2, ∞)",
        hint="one candidate has no other to be compared with",
        shown=_OWN,
    )
    offspring: int | None = option(None, "Candidates of each generation", within="[1, ∞)", shown=_OWN)
    generations: int | None = option(None, "Generations of a genetic search", within="[1, ∞)", shown=_OWN)
    budget: int | None = option(
        None, "Start no new generation after so many layer-tokens", within="[1, ∞)", shown="no limit"
    )
    racing: bool = option(True, "Stop the evaluation of candidates that cannot win")
    surrogate: bool = option(True, "Use predicted losses to start and to sort out candidates")
    bottlenecks: int = option(16, "Matrices of the result to test as bottlenecks", within="[0, ∞)")

    def check(self) -> "Options":
        """InputError for a value that cannot work; returns the options themselves."""
        require_values(self)
        return self
