"""What is asked of a search: how small, how good, and by which searcher."""

from dataclasses import dataclass

from sieve.errors import UnreadOption
from sieve.searchers.algorithms.base import SEARCHERS
from sieve.searchers.config import check_tolerance
from sieve.utils.options import option


@dataclass(frozen=True)
class GoalConfig:
    """tolerance: ε in [0, 1), relative to the dense model's accuracy.
    search: name of a searcher; None: the method's own, "budget" for pairs and "uniform" for masks.
    margin: correct the tolerance for the luck of the choice among many candidates (`sieve.searchers.margin`).
    confident: demand the lower end of the paired 95 % interval, not the mean.
    allow_no_signal: go on where the dense model scores 0, so that every candidate is within the tolerance.
    rank_multiple: ranks are rounded up to it; None means 8 on CPU, 32 on GPU.
    """

    GROUP = "Size"

    tolerance: float = option(
        0.05, "Share of the dense accuracy that may be lost", within="[0, 1)", check=check_tolerance
    )
    search: str | None = option(
        None, "Searcher", choices=lambda: tuple(SEARCHERS), shown="budget; uniform for masks", group="Search"
    )
    margin: bool = option(False, "Keep the tolerance by a margin for the luck of choosing among many candidates")
    confident: bool = option(False, "Ask the lower end of the 95 % interval, not the mean, to be in tolerance")
    allow_no_signal: bool = option(False, "Go on although the dense model scores 0, so that every candidate passes")
    rank_multiple: int | None = option(
        None, "Round ranks up to a multiple of this", within="[1, ∞)", shown="8 on CPU, 32 on GPU"
    )

    def check(self, kept: float | None, rounds: int = 1) -> None:
        """UnreadOption for an option of the tolerance where a size is asked for.

        Later rounds of healing have to keep the tolerance, without a margin.
        """
        for name in ("margin", "confident") if kept is not None else ():
            if getattr(self, name) and not (name == "confident" and rounds > 1):
                raise UnreadOption(
                    f"--{name} is for the tolerance, and --kept asks for a size instead: leave one of them out", name
                )
