"""What a user can choose about a search beyond its name."""

from dataclasses import dataclass

from sieve.errors import InputError
from sieve.fitness.engine import MEMORY
from sieve.fitness.workers import check_workers
from sieve.searchers.genome import GRANULARITIES
from sieve.searchers.objective import OBJECTIVES
from sieve.utils.messages import shorten


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
