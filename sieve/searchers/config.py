"""What a user can choose about a search beyond its name."""

from dataclasses import dataclass

from sieve.errors import InputError
from sieve.utils.messages import shorten

OBJECTIVES = ("parameters", "bytes", "latency")
GRANULARITIES = ("matrix", "group", "block")
MEMORY = 2 << 30
CLUSTER = "ray://"  # how the address of one begins
SMALLEST_TOLERANCE = 1e-6  # a millionth of the accuracy, which no number of examples resolves


@dataclass(frozen=True)
class Options:
    """Of `ga`, `pareto` and `budget`; `uniform` knows `kept` alone.

    objective: what is to become small: "parameters", "bytes" or "latency" (seconds per layer, measured on this
        machine; pairs that are not faster than their matrix stay dense).
    kept: fraction of it that may stay: "best at this size" in the place of "smallest within the
        tolerance". None: the latter.
    granularity: what one gene is: "matrix", "group" (q/k/v; gate/up) or "block".
    paper: the constants of DESIGN 2.9 in the place of ours (`ga` only).
    population, offspring, generations: of the genetic searches; None for the searcher's own.
    budget: layer-tokens after which no new generation begins; None for no such limit.
    layers, racing, surrogate: shortcuts that can be switched off. Without the surrogate `budget` has nothing to go by.
    memory: bytes that states shared between candidates may take.
    bottlenecks: of the winner's matrices, how many are tested for being one; 0 tests none.
    workers: processes that evaluate candidates, by Ray: a number of them on this machine, or "ray://host:port" for all
        processors of a cluster. The result is the same for any number. None: this process does it.
    """

    objective: str = "parameters"
    kept: float | None = None
    granularity: str = "matrix"
    paper: bool = False
    population: int | None = None
    offspring: int | None = None
    generations: int | None = None
    budget: int | None = None
    layers: bool = True
    racing: bool = True
    surrogate: bool = True
    memory: int = MEMORY
    bottlenecks: int = 16
    workers: int | str | None = None

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
        if self.memory < 0 or self.bottlenecks < 0:
            raise InputError("--memory and --bottlenecks must not be negative")
        check_workers(self.workers)
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


def check_workers(workers: int | str | None) -> None:
    """InputError unless it is None, a number or the address of a cluster."""
    number = isinstance(workers, int) and workers >= 1
    address = isinstance(workers, str) and workers.startswith(CLUSTER)
    if not (workers is None or number or address):
        raise InputError(
            f"--workers must be a number from 1 on or an address {CLUSTER}host:port, got {shorten(workers)}"
        )
