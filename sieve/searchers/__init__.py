"""Which candidate next: from nested factors and a task to the smallest plan within the tolerance."""

from sieve.searchers.options import Options
from sieve.searchers.problem import Candidate, Problem
from sieve.searchers.run import (
    SEARCHERS,
    SearchResult,
    check_mask_search,
    check_options,
    default_search,
    run_search,
    search,
)

__all__ = [
    "SEARCHERS",
    "Candidate",
    "Options",
    "Problem",
    "SearchResult",
    "check_mask_search",
    "check_options",
    "default_search",
    "run_search",
    "search",
]
