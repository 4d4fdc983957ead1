"""The genetic algorithm of LLM-Sieve (arXiv 2505.18350), with our own operators and seeds or, if asked, the paper's.

Fitness, as publicly re-implemented (DESIGN 2.9, constants unverified): compression / (1 + exp(-50 (accuracy - a₀))),
with the removed share as compression and a₀ the accuracy that the tolerance demands. Where a size is asked for, the
value.
"""

from collections.abc import Iterator

import numpy as np
from pymoo.algorithms.soo.nonconvex.ga import GA as GeneticAlgorithm
from pymoo.algorithms.soo.nonconvex.ga import FitnessSurvival
from pymoo.core.population import Population
from pymoo.core.survival import Survival
from pymoo.operators.selection.tournament import TournamentSelection
from scipy.special import expit

from sieve.registry import implements
from sieve.searchers.algorithms.base import GA
from sieve.searchers.algorithms.evolution import PROPOSALS, Evolution
from sieve.searchers.algorithms.operators import (
    BlockCrossover,
    FitSize,
    PaperCrossover,
    PaperMutation,
    RunMutation,
)
from sieve.searchers.genome import PAPER_LEVELS
from sieve.searchers.problem import Candidate, SearchProblem
from sieve.utils import progress

POPULATION, OFFSPRING, GENERATIONS = 8, 60, 10
PAPER_POPULATION, PAPER_GENERATIONS = 100, 30
_STEEPNESS = 50
_PATIENCE, _PROGRESS = 10, 0.05  # the paper's: stop after so many generations without this improvement
_HALVINGS = 5
_SIZES = 32  # grid of the bisection that finds where to begin


@implements(GA)
def ga(problem: SearchProblem) -> Iterator[Candidate]:
    """Yield acceptable candidates along the front, the smallest first."""
    options = problem.options
    evolution = Evolution(problem, PAPER_LEVELS, smooth=False) if options.paper else Evolution(problem)
    floor = (1 - problem.tolerance) * problem.dense.accuracy

    def fitness(levels: np.ndarray, mean: float) -> float:
        if options.kept is not None:
            return mean
        return (1 - evolution.relative_size(levels)) * expit(_STEEPNESS * (mean - floor))

    # Sizes and operators: the paper's, or our own.
    population = options.population or (PAPER_POPULATION if options.paper else POPULATION)
    offspring = options.offspring or (population if options.paper else OFFSPRING)
    if options.paper:
        seeds, survival = _paper_seeds(evolution, population), Generational()
        crossover, mutation, pressure = PaperCrossover(0.5), PaperMutation(evolution.genome, 0.2), 5
    else:
        seeds, survival = _seeds(evolution, population), FitnessSurvival()
        crossover, mutation, pressure = BlockCrossover(evolution.genome, 0.3), RunMutation(evolution.genome), 2
        evolution.fit_score_calibration()
    limit = problem.size_limit
    algorithm = GeneticAlgorithm(
        pop_size=population,
        n_offsprings=offspring * (PROPOSALS if evolution.surrogate and not options.paper else 1),
        sampling=np.array([evolution.fit(levels, limit) for levels in seeds]),
        selection=TournamentSelection(func_comp=_best, pressure=pressure),
        crossover=crossover,
        mutation=mutation,
        survival=survival,
        repair=FitSize(lambda levels: evolution.fit(levels, limit)),
        eliminate_duplicates=True,
    )

    def utility(levels: np.ndarray, mean: float) -> float:
        """By how much a candidate would enter the population."""
        bar = float(algorithm.pop.get("F").max()) if len(algorithm.pop) >= population else np.inf
        return fitness(levels, mean) + bar

    # The paper stops where the best fitness has stalled.
    generations = options.generations or (PAPER_GENERATIONS if options.paper else GENERATIONS)
    best: list[float] = []

    def stalled() -> bool:
        best.append(-float(algorithm.pop.get("F").min()))
        return options.paper and len(best) > _PATIENCE and best[-1] < (1 + _PROGRESS) * best[-1 - _PATIENCE]

    evolution.run(
        algorithm, lambda levels, mean: [-fitness(levels, mean)], utility, offspring, generations, population, stalled
    )
    # The fitness keeps some distance from the tolerance: look for the edge itself.
    if options.kept is None and not options.paper:
        best = max(evolution.scored.values(), key=lambda pair: fitness(pair[0], evolution.mean(pair[1])))[0]
        for start in (best, evolution.genome.dense):
            _bisect_size(evolution, start)
    yield from evolution.winners()


def _bisect_size(evolution: Evolution, start: np.ndarray) -> None:
    """Evaluate ever smaller candidates between `start` and the smallest feasible one, by bisection.

    The fitness wants some distance from the tolerance's edge; what is asked for is the edge.
    """
    feasible = (levels for levels, scores in evolution.scored.values() if evolution.is_feasible(scores))
    smallest = min(map(evolution.relative_size, feasible), default=1.0)
    low, high = 0.8 * smallest, min(evolution.relative_size(start), 1.05 * smallest)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        (scores,) = evolution.evaluate(
            [evolution.fit(start, middle * evolution.genome.size(evolution.genome.dense))]
        ).values()
        if evolution.is_feasible(scores):
            high = middle
        else:
            low = middle


def _seeds(evolution: Evolution, population: int) -> list[np.ndarray]:
    """Candidates about the smallest size that seems good enough, or of the size that is asked for."""
    problem = evolution.problem
    share = problem.options.kept or _start(evolution)
    seeds = [levels for scale in (1.0, 0.94, 1.06) for levels in evolution.sized(min(share * scale, 0.98))]
    mutate = RunMutation(evolution.genome)
    while len(seeds) < population:
        parent = seeds[int(evolution.draw.integers(3))]
        seeds.append(mutate._mutated(parent, evolution.draw))
    unique = {levels.tobytes(): levels for levels in seeds}
    return list(unique.values())[:population]


def _start(evolution: Evolution) -> float:
    """The smallest relative size at which an allocated candidate is within the tolerance, by bisection."""
    low, high = 0, _SIZES
    while high - low > 1:
        middle = (low + high) // 2
        levels = evolution.sized(middle / _SIZES)[0]
        (scores,) = evolution.evaluate([levels]).values()
        if evolution.is_feasible(scores):
            high = middle
        else:
            low = middle
    progress.say(f"  allocation by predicted loss is within the tolerance at {high / _SIZES:.0%} of the parameters")
    return high / _SIZES


def _paper_seeds(evolution: Evolution, population: int) -> list[np.ndarray]:
    """Every level uniformly, then random ones."""
    genome = evolution.genome
    seeds = [np.minimum(level, genome.bounds - 1) for level in range(int(genome.bounds.max()))]
    while len(seeds) < population:
        seeds.append(evolution.draw.integers(genome.bounds))
    return seeds[:population]


class Generational(Survival):
    """The paper's: offspring replace their parents, all but the best one."""

    def __init__(self):
        super().__init__(filter_infeasible=False)

    def _do(self, problem, pop, *args, n_survive=None, algorithm=None, **kwargs):
        children = set(map(id, algorithm.off))
        parents = [one for one in pop if id(one) not in children]
        elite = min(parents, key=lambda one: one.F[0], default=None)
        kept = [*([elite] if elite is not None else []), *sorted(algorithm.off, key=lambda one: one.F[0])]
        return Population.create(*kept[:n_survive])


def _best(pop: Population, P: np.ndarray, **kwargs) -> np.ndarray:
    """The fittest competitor of each row."""
    F = pop.get("F")[:, 0]
    return P[np.arange(len(P)), F[P].argmin(axis=1)][:, None].astype(int)
