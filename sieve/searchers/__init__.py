"""Which candidate next: from nested factors and a task to the smallest plan within the tolerance."""

from sieve.options.search import Options
from sieve.searchers.problem import Candidate, Problem
from sieve.searchers.run import (
    SEARCHERS,
    SearchResult,
    run_search,
    search,
)

__all__ = [
    "SEARCHERS",
    "Candidate",
    "Options",
    "Problem",
    "SearchResult",
    "run_search",
    "search",
]
