"""What a searcher is, and the table of them. Imports no torch: recipes and the command line read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sieve.errors import InputError, UnreadOption
from sieve.registry import Described, Traits
from sieve.searchers.config import Options
from sieve.searchers.engine.config import EngineConfig
from sieve.utils.messages import shorten
from sieve.utils.options import options_of

if TYPE_CHECKING:
    from sieve.searchers.problem import Candidate, SearchProblem

# Options that not every searcher reads → the property of those that do.
_READ_BY = {
    "granularity": "per_matrix",
    "bottlenecks": "per_matrix",
    "memory": "per_matrix",
    "population": "evolves",
    "offspring": "evolves",
    "generations": "evolves",
    "budget": "evolves",
    "paper": "paper_constants",
}


@dataclass(frozen=True)
class Searcher(Described):
    """One way to choose candidates, and what it needs.

    sequential: proposes one candidate after the other, so that several workers have nothing to share.
    per_matrix: gives each matrix a rank of its own, so that candidates have parts in common and a surrogate helps.
    needs_surrogate: has nothing to go by without predicted losses.
    evolves: makes generations of candidates from earlier ones.
    paper_constants: knows the constants of DESIGN 2.9.
    """

    room: str = field(default=__package__, kw_only=True)
    sequential: bool = False
    per_matrix: bool = True
    needs_surrogate: bool = False
    evolves: bool = False
    paper_constants: bool = False

    def run(self, problem: SearchProblem) -> Iterator[Candidate]:
        """Candidates that the fitness split accepts, the one that the searcher would choose first.

        Where a size is asked for, all that it yields are tried on the validation split, and the best is taken.
        """
        return self.implementation()(problem)

    def check(self, options: Options, engine: EngineConfig, traits: Traits) -> None:
        """InputError for an option that it cannot use, or for results that it cannot search."""
        options.check()
        engine.check()
        if self.needs_surrogate and not options.surrogate:
            raise InputError(f"the {self.name} search has nothing to go by without the surrogate: leave it on")
        if engine.workers is not None and self.sequential:
            raise InputError(
                f"--workers have nothing to share: --search {self.name} tries one candidate after the other"
            )
        if not self.searches(traits):
            others = " or ".join(name for name, one in SEARCHERS.items() if one.searches(traits))
            raise InputError(
                f"the {self.name} search goes by predicted loss of ranks, and {traits.results} have none: use {others}"
            )
        if options.objective not in traits.objectives:
            raise InputError(
                f"{traits.results} leave {options.objective} as they are: leave --objective out, or use a projection"
            )
        self._check_options_of_others(options, engine, traits)

    def searches(self, traits: Traits) -> bool:
        """Whether it can search such results."""
        return traits.predictable or not self.needs_surrogate

    def _check_options_of_others(self, options: Options, engine: EngineConfig, traits: Traits) -> None:
        """UnreadOption for an option that asks for something of which this searcher knows nothing."""
        known, given = options_of(Options) | options_of(EngineConfig), vars(options) | vars(engine)
        for name, reads in _READ_BY.items():
            value, option = given[name], known[name]
            if not value or value == option.default or getattr(self, reads):
                continue
            readers = [one.name for one in SEARCHERS.values() if getattr(one, reads) and one.searches(traits)]
            raise UnreadOption(
                f"{option.flag} is for --search {' or '.join(readers)}, and --search {self.name} does not read it: "
                f"leave it out, or use --search {readers[0]}",
                name,
            )
        # Where all matrices have one rank, the smallest plan is the same by any measure of size.
        if not self.per_matrix and options.kept is None and options.objective != known["objective"].default:
            raise UnreadOption(
                f"--objective {options.objective} makes no difference to --search {self.name} without --kept: leave it "
                "out, or add --kept",
                "objective",
            )


UNIFORM = Searcher(
    "uniform", "one kept fraction for all matrices, by bisection on the size", sequential=True, per_matrix=False
)
BUDGET = Searcher("budget", "ranks by predicted loss, from one backward pass", sequential=True, needs_surrogate=True)
GA = Searcher("ga", "the genetic algorithm of LLM-Sieve: hundreds of candidates", evolves=True, paper_constants=True)
PARETO = Searcher("pareto", "the whole curve of size against score, by NSGA-II: hundreds of candidates", evolves=True)

SEARCHERS = {searcher.name: searcher for searcher in (UNIFORM, BUDGET, GA, PARETO)}
"""By name. A new searcher is a row here and a file of its own, whose function says `@implements(ROW)`."""


def searcher_named(name: str) -> Searcher:
    """InputError for a name that is not in the table."""
    if name not in SEARCHERS:
        raise InputError(f"unknown search {shorten(name)}: choose one of {', '.join(SEARCHERS)}")
    return SEARCHERS[name]
