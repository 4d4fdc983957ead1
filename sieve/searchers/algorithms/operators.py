"""How a genetic search makes new candidates, as pymoo operators over level vectors.

Ours change few genes, close together and mostly late: what is computed before the first changed block is shared with
the parents. The paper's (DESIGN 2.9; from a public re-implementation, unverified) are here for comparison.
"""

from collections.abc import Callable

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.repair import Repair

from sieve.searchers.genome import Genome

EARLY = 0.12  # share of changes that may begin at any block
LATE = 0.12  # the others begin this share of the blocks before the end, on average
GENES = 6  # the most genes that one mutation changes


class RunMutation(Mutation):
    """A few genes of one to three consecutive blocks move by a level, sometimes by two."""

    def __init__(self, genome: Genome):
        super().__init__(prob=1.0)
        self._genome = genome
        self._blocks = np.unique(genome.blocks)

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        return np.array([self._mutated(levels, random_state) for levels in X])

    def _mutated(self, levels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        first = _block(len(self._blocks), draw)
        run = self._blocks[first : first + draw.integers(1, 4)]
        genes = np.flatnonzero(np.isin(self._genome.blocks, run) & (self._genome.bounds > 1))
        changed = levels.copy()
        if not len(genes):
            return changed
        for gene in draw.choice(genes, size=min(draw.integers(1, GENES + 1), len(genes)), replace=False):
            step = draw.choice([-2, -1, 1, 2], p=[0.1, 0.4, 0.4, 0.1])
            changed[gene] = np.clip(changed[gene] + step, 0, self._genome.bounds[gene] - 1)
        return changed


class BlockCrossover(Crossover):
    """One parent's blocks up to a point, mostly a late one, and the other's from there on."""

    def __init__(self, genome: Genome, prob: float):
        super().__init__(n_parents=2, n_offsprings=1, prob=prob)
        self._genome = genome
        self._blocks = np.unique(genome.blocks)

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        first, second = X
        points = [self._blocks[_block(len(self._blocks), random_state)] for _ in first]
        before = self._genome.blocks[None] < np.array(points)[:, None]
        return np.where(before, first, second)[None]


class PaperMutation(Mutation):
    """Each gene moves by one level with probability `rate`."""

    def __init__(self, genome: Genome, rate: float):
        super().__init__(prob=1.0)
        self._genome, self._rate = genome, rate

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        step = random_state.choice([-1, 1], size=X.shape) * (random_state.random(X.shape) < self._rate)
        return np.clip(X + step, 0, self._genome.bounds - 1)


class PaperCrossover(Crossover):
    """One-point crossover anywhere between two genes."""

    def __init__(self, prob: float):
        super().__init__(n_parents=2, n_offsprings=1, prob=prob)

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        first, second = X
        points = random_state.integers(1, max(first.shape[1], 2), size=len(first))
        return np.where(np.arange(first.shape[1])[None] < points[:, None], first, second)[None]


class FitSize(Repair):
    """Makes every candidate what `fit` makes of it."""

    def __init__(self, fit: Callable[[np.ndarray], np.ndarray]):
        super().__init__()
        self._fit = fit

    def _do(self, problem, X, **kwargs):
        return np.array([self._fit(levels) for levels in X])


def _block(number: int, draw: np.random.Generator) -> int:
    """Where a change begins, as an index among the blocks."""
    if draw.random() < EARLY:
        return int(draw.integers(number))
    return int(np.clip(number - 1 - draw.exponential(LATE * number), 0, number - 1))
