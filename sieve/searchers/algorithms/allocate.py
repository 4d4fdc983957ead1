"""Levels for a given size by predicted loss alone: always the step that loses least per parameter saved.

A gene's predicted loss over its size need not be convex; steps go along its lower convex hull, on which the greedy
choice is the best one (of the sizes that it passes through).
"""

import heapq

import numpy as np

from sieve.searchers.genome import Genome
from sieve.searchers.surrogate import Surrogate


def allocate(genome: Genome, surrogate: Surrogate, size: float, levels: np.ndarray | None = None) -> np.ndarray:
    """Levels [G] of at most `size`, reached from `levels` (default: dense) by the cheapest steps.

    Where even the smallest levels are larger, those.
    """
    levels = genome.dense.copy() if levels is None else levels.copy()
    total = genome.size(levels)
    steps: list[tuple[float, int, int]] = []

    def push(gene: int) -> None:
        step = _next(genome, surrogate, gene, int(levels[gene]))
        if step is not None:
            heapq.heappush(steps, (step[0], gene, step[1]))

    for gene in range(len(genome)):
        push(gene)
    while total > size and steps:
        _, gene, level = heapq.heappop(steps)
        sizes = genome.sizes[gene]
        total -= (sizes[levels[gene]] - sizes[level]).item()
        levels[gene] = level
        push(gene)
    return levels


def _next(genome: Genome, surrogate: Surrogate, gene: int, level: int) -> tuple[float, int] | None:
    """The lower level with the least predicted loss per parameter saved; None at the lowest."""
    sizes = genome.sizes[gene]
    here = surrogate.marginal(gene, level)
    options = [
        ((surrogate.marginal(gene, lower) - here) / float(sizes[level] - sizes[lower]), lower) for lower in range(level)
    ]
    return min(options, default=None)
