"""The whole curve of size against score: NSGA-II (Deb et al. 2002), from pymoo."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2

from sieve.registry import implements
from sieve.searchers.algorithms.base import PARETO
from sieve.searchers.algorithms.evolution import PROPOSALS, Evolution
from sieve.searchers.algorithms.operators import BlockCrossover, FitSize, RunMutation
from sieve.searchers.problem import Candidate, SearchProblem

POPULATION, OFFSPRING, GENERATIONS = 24, 60, 10
RELATIVE_SIZES = (0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)  # where the curve is begun


@implements(PARETO)
def pareto(problem: SearchProblem) -> Iterator[Candidate]:
    """Yield acceptable candidates along the front, the smallest first. Tolerance or size only pick among them."""
    options = problem.options
    evolution = Evolution(problem)
    population = options.population or POPULATION
    limit = problem.size_limit
    # Begin with candidates along the whole curve.
    every = [levels for size in RELATIVE_SIZES for levels in evolution.sized(size)]
    seeds = list({levels.tobytes(): levels for levels in (evolution.fit(levels, limit) for levels in every)}.values())
    evolution.evaluate(seeds)
    evolution.fit_score_calibration()

    # A candidate is of use where it raises the front.
    @lru_cache(maxsize=1)
    def front(evaluated: int) -> list[tuple[float, float]]:
        return [(evolution.relative_size(levels), evolution.mean(scores)) for levels, scores in evolution.front()]

    def utility(levels: np.ndarray, mean: float) -> float:
        """By how much a candidate would be better than all that are no larger."""
        size = evolution.relative_size(levels)
        return min((mean - value for other, value in front(len(evolution.scored)) if other <= size), default=1.0)

    # Evolve towards small sizes and large values.
    algorithm = NSGA2(
        pop_size=population,
        n_offsprings=(options.offspring or OFFSPRING) * (PROPOSALS if evolution.surrogate else 1),
        sampling=np.array(seeds),
        crossover=BlockCrossover(evolution.genome, 0.3),
        mutation=RunMutation(evolution.genome),
        repair=FitSize(lambda levels: evolution.fit(levels, limit)),
        eliminate_duplicates=True,
    )
    evolution.run(
        algorithm,
        lambda levels, mean: [evolution.relative_size(levels), -mean],
        utility,
        options.offspring or OFFSPRING,
        options.generations or GENERATIONS,
    )
    yield from evolution.winners()
