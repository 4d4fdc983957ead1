"""Allocation by predicted loss: one backward pass decides every matrix's rank, no candidate need be tried."""

from collections.abc import Iterator

from sieve.fitness.surrogate import Surrogate
from sieve.plan import Plan
from sieve.searchers.allocate import allocate
from sieve.searchers.genome import Genome
from sieve.searchers.problem import Candidate, Problem
from sieve.searchers.uniform import STEPS, smallest


def budget(problem: Problem) -> Iterator[Candidate]:
    """For a given size its allocation, scored once; for a tolerance, bisection over the sizes 1/50, 2/50, …"""
    genome = problem.genome()
    surrogate = Surrogate(genome, problem.curves)
    if problem.options.kept is not None:
        problem.require_reachable(genome.size(genome.dense * 0))
        yield problem.evaluate(genome.plan(allocate(genome, surrogate, problem.size_limit)))
        return
    yield from smallest(problem, allocations(genome, surrogate))


def allocations(genome: Genome, surrogate: Surrogate) -> list[Plan]:
    """The distinct allocations of the grid of sizes that prune anything, smallest first."""
    plans: list[Plan] = []
    levels = genome.dense
    for step in range(STEPS - 1, 0, -1):  # each goes on where the larger one stopped
        levels = allocate(genome, surrogate, genome.size(genome.dense) * step / STEPS, levels)
        plan = genome.plan(levels)
        if plan and (not plans or plan != plans[-1]):
            plans.append(plan)
    return plans[::-1]
