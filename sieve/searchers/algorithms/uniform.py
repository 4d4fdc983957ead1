"""Uniform pruning: bisection on one kept fraction for all matrices (the baseline of LLM-Sieve)."""

from collections.abc import Iterator, Sequence

from sieve.compression.plan import Plan
from sieve.models.matrix import DENSE
from sieve.registry import implements
from sieve.searchers.algorithms.base import UNIFORM
from sieve.searchers.problem import Candidate, SearchProblem
from sieve.searchers.reach import STEPS
from sieve.utils import progress


@implements(UNIFORM)
def uniform(problem: SearchProblem) -> Iterator[Candidate]:
    """Yield acceptable candidates, the smallest first and then ever larger ones.

    Where a size is asked for: the largest plan of that size, without any comparison.
    """
    plans = uniform_plans(problem)
    if problem.options.kept is not None:
        problem.require_reachable(min(map(problem.size, plans), default=problem.size({})))
        yield problem.evaluate([plan for plan in plans if problem.size(plan) <= problem.size_limit][-1])
        return
    yield from smallest(problem, plans)


def smallest(problem: SearchProblem, plans: Sequence[Plan]) -> Iterator[Candidate]:
    """Acceptable candidates among plans that grow, the smallest first and then ever larger ones.

    Bisection takes accuracy to grow with size. Where noise breaks that, it still ends at a plan that is acceptable next
    to one that is not.
    """
    progress.say(f"  bisection over {len(plans)} sizes: at most {len(plans).bit_length()} candidates")
    low, high = -1, len(plans)  # plans[low] is known too small, plans[high] known good (dense lies past the end)
    while high - low > 1:
        middle = (low + high) // 2
        if problem.accepts(problem.evaluate(plans[middle])):
            high = middle
        else:
            low = middle
    for plan in plans[high:]:
        candidate = problem.evaluate(plan)
        if problem.accepts(candidate):
            yield candidate


def uniform_plans(problem: SearchProblem) -> list[Plan]:
    """The distinct plans of the grid that prune anything, smallest first."""
    plans: list[Plan] = []
    for step in range(1, STEPS + 1):
        plan = Plan.uniform(problem.matrices.values(), step / STEPS, problem.rank_multiple)
        if set(plan.values()) != {DENSE} and (not plans or plan != plans[-1]):
            plans.append(plan)
    return plans
