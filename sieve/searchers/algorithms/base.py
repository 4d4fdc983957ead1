"""What a searcher is, and the table of them. Imports no torch: recipes and the command line read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sieve.errors import InputError
from sieve.registry import Traits
from sieve.searchers.config import Options
from sieve.utils.messages import shorten

if TYPE_CHECKING:
    from sieve.searchers.problem import Candidate, Problem


@dataclass(frozen=True)
class Searcher:
    """One way to choose candidates.

    run: yields candidates that the fitness split accepts, the one that it would choose first. Where a size is asked
        for, all that it yields are tried on the validation split, and the best is taken.
    about: one line for the user.
    sequential: proposes one candidate after the other, so that several workers have nothing to share.
    per_matrix: gives each matrix a rank of its own, so that candidates have parts in common and a surrogate helps.
    needs_surrogate: has nothing to go by without predicted losses.
    paper_constants: knows the constants of DESIGN 2.9.
    """

    name: str
    run: Callable[[Problem], Iterator[Candidate]]
    about: str
    sequential: bool = False
    per_matrix: bool = True
    needs_surrogate: bool = False
    paper_constants: bool = False

    def check(self, options: Options, traits: Traits) -> None:
        """InputError for an option that it cannot use, or for results that it cannot search."""
        options.check()
        if self.needs_surrogate and not options.surrogate:
            raise InputError(f"the {self.name} search has nothing to go by without the surrogate: leave it on")
        if options.workers is not None and self.sequential:
            raise InputError(
                f"--workers have nothing to share: --search {self.name} tries one candidate after the other"
            )
        if options.paper and not self.paper_constants:
            raise InputError("--paper names the constants of the genetic algorithm: use it with --search ga")
        if self.needs_surrogate and not traits.predictable:
            others = " or ".join(name for name, one in SEARCHERS.items() if not one.needs_surrogate)
            raise InputError(
                f"the {self.name} search goes by predicted loss of ranks, and {traits.results} have none: use {others}"
            )
        if options.objective not in traits.objectives:
            raise InputError(
                f"{traits.results} leave {options.objective} as they are: leave --objective out, or use a projection"
            )


# Algorithms are imported when they run: their libraries take seconds.
def _uniform(problem: Problem) -> Iterator[Candidate]:
    from sieve.searchers.algorithms.uniform import uniform

    return uniform(problem)


def _budget(problem: Problem) -> Iterator[Candidate]:
    from sieve.searchers.algorithms.budget import budget

    return budget(problem)


def _ga(problem: Problem) -> Iterator[Candidate]:
    from sieve.searchers.algorithms.ga import ga

    return ga(problem)


def _pareto(problem: Problem) -> Iterator[Candidate]:
    from sieve.searchers.algorithms.pareto import pareto

    return pareto(problem)


SEARCHERS = {
    searcher.name: searcher
    for searcher in (
        Searcher("uniform", _uniform, "one kept fraction for all matrices, by bisection", True, per_matrix=False),
        Searcher("budget", _budget, "ranks by predicted loss, from one backward pass", True, needs_surrogate=True),
        Searcher("ga", _ga, "the genetic algorithm of LLM-Sieve", paper_constants=True),
        Searcher("pareto", _pareto, "the whole curve of size against score (NSGA-II)"),
    )
}
"""By name. A new searcher is a file of its own and a row here."""


def searcher_named(name: str) -> Searcher:
    """InputError for a name that is not in the table."""
    if name not in SEARCHERS:
        raise InputError(f"unknown search {shorten(name)}: choose one of {', '.join(SEARCHERS)}")
    return SEARCHERS[name]
