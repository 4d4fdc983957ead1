"""Allocation by predicted loss: one backward pass decides every matrix's rank, no candidate need be tried."""

from collections.abc import Iterator

import numpy as np

from sieve.compression.plan import Plan
from sieve.registry import implements
from sieve.searchers.algorithms.allocate import allocate
from sieve.searchers.algorithms.base import BUDGET
from sieve.searchers.algorithms.uniform import smallest, uniform_plans
from sieve.searchers.genome import Genome
from sieve.searchers.problem import Candidate, SearchProblem
from sieve.searchers.reach import STEPS
from sieve.searchers.surrogate import Surrogate


@implements(BUDGET)
def budget(problem: SearchProblem) -> Iterator[Candidate]:
    """For a given size its allocation, scored once; for a tolerance, bisection over the sizes 1/50, 2/50, …"""
    genome = problem.genome()
    surrogate = Surrogate(genome, problem.curves)
    if problem.options.kept is not None:
        problem.require_reachable(genome.size(genome.dense * 0))
        yield problem.evaluate(genome.plan(allocate(genome, surrogate, problem.size_limit)))
        return
    yield from smallest(problem, allocations(genome, surrogate))


def allocations(genome: Genome, surrogate: Surrogate, levels: np.ndarray | None = None) -> list[Plan]:
    """The distinct allocations of the grid of sizes below these levels (default: dense), smallest first."""
    levels = genome.dense if levels is None else levels
    plans = [genome.plan(levels)]
    for step in range(STEPS - 1, 0, -1):  # each goes on where the larger one stopped
        levels = allocate(genome, surrogate, genome.size(genome.dense) * step / STEPS, levels)
        plan = genome.plan(levels)
        if plan != plans[-1]:
            plans.append(plan)
    return plans[:0:-1]


def smaller(problem: SearchProblem, plan: Plan) -> list[Plan]:
    """Plans that go on from this one to ever smaller sizes, smallest first; uniform ones where nothing is predicted."""
    if problem.curves is None:
        return [one for one in uniform_plans(problem) if problem.size(one) < problem.size(plan)]
    genome = problem.genome()
    return allocations(genome, Surrogate(genome, problem.curves), genome.nearest(plan))
