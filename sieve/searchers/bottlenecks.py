"""Bottlenecks of the winner: matrices that can lose nothing more. Each is tested alone, with one level less."""

from dataclasses import dataclass

import numpy as np

from sieve.compression.plan import Plan
from sieve.evaluation.scoring import concatenated
from sieve.models.matrix import DENSE
from sieve.searchers.genome import Genome
from sieve.searchers.problem import Candidate, SearchProblem
from sieve.searchers.surrogate import Surrogate
from sieve.utils import progress


@dataclass(frozen=True)
class Bottleneck:
    """One gene's ablation.

    names: its matrices. kept, lower: their size in the winner, relative to dense, and with one level less.
    accuracy, loglik: change of the means on the fitness split when only this gene loses that level.
    breaks: whether the winner is then no longer within the tolerance: only such a gene is a bottleneck.
    """

    names: tuple[str, ...]
    kept: float
    lower: float
    accuracy: float
    loglik: float
    breaks: bool


def bottlenecks(problem: SearchProblem, winner: Candidate) -> list[Bottleneck]:
    """Ablations of the winner, the dearest (in log-likelihood) first.

    Only as many genes as asked for are tested: those whose next level the surrogate takes to cost most per gene.
    """
    # The next smaller level of each gene, where there is one.
    genome = problem.genome()
    nearest, lower = genome.nearest(winner.plan), {}
    for gene, sizes in enumerate(genome.sizes):
        smaller = np.flatnonzero(sizes < _size(genome, gene, winner.plan))  # ranks need not be levels of this genome
        if len(smaller):
            lower[gene] = int(smaller[-1])
    # The genes to test: those whose next level is predicted to cost most.
    genes = list(lower)
    if problem.curves is not None:
        surrogate = Surrogate(genome, problem.curves)
        cost = {gene: surrogate.marginal(gene, lower[gene]) - surrogate.marginal(gene, nearest[gene]) for gene in genes}
        genes.sort(key=lambda gene: (-cost[gene], gene))
    genes = genes[: problem.options.bottlenecks]
    # The winner with one gene at its next level, for each of them.
    plans = [
        {**winner.plan, **dict(zip(genome.genes[gene].names, genome.genes[gene].levels[lower[gene]], strict=True))}
        for gene in genes
    ]
    progress.say(f"  bottlenecks: {len(genes)} matrices lose one level each")
    asked = [problem.engine.scores(plans, rung) for rung in range(len(problem.engine))]
    # What that changed, and whether the tolerance still holds.
    floor = (1 - problem.tolerance) * problem.dense.score.sum()
    found = []
    for gene, *parts in zip(genes, *asked, strict=True):
        scores = concatenated(parts)
        dense = genome.sizes[gene][-1]
        found.append(
            Bottleneck(
                genome.genes[gene].names,
                float(_size(genome, gene, winner.plan) / dense),
                float(genome.sizes[gene][lower[gene]] / dense),
                scores.accuracy - winner.scores.accuracy,
                scores.mean_loglik - winner.scores.mean_loglik,
                bool(scores.score.sum() < floor - 1e-9),
            )
        )
    return sorted(found, key=lambda one: (one.loglik, one.names))


def _size(genome: Genome, gene: int, plan: Plan) -> float:
    return sum(genome.size_of(name, plan.get(name, DENSE)) for name in genome.genes[gene].names)
