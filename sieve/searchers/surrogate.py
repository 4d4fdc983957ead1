"""The predicted loss of a candidate, without running it, and how good the predictions were.

The sum over genes of what each costs at its level (`sensitivity`), with one weight per gene that is fitted again
whenever evaluations are in: ridge regression towards the common weight, so that a gene that no evaluation tells apart
keeps what its gradients said.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from scipy.stats import spearmanr

from sieve.models.matrix import DENSE

_SPREAD = 0.5  # how far a gene's weight may be from the common one, as a standard deviation relative to it
_LEAST = 0.1  # weights stay above this share of the common one: less than nothing is never lost


class _Genome(Protocol):
    genes: list
    bounds: np.ndarray


class Surrogate:
    """Predicted loss of level vectors, in nats above the dense model's.

    tables: per gene, float64 [levels]: predicted loss of that gene alone at each of its levels; 0 where dense.
    """

    def __init__(self, genome: _Genome, curves: Mapping[str, np.ndarray]):
        self.tables = [
            _falling([sum(_at(curves[name], rank) for name, rank in zip(gene.names, ranks, strict=True)) for ranks in
                      gene.levels])
            for gene in genome.genes
        ]  # fmt: skip
        self.weights = np.ones(len(self.tables))

    def loss(self, levels: np.ndarray) -> float:
        """Predicted increase of the mean negative log-likelihood."""
        return float(self.weights @ self._features(levels))

    def marginal(self, gene: int, level: int) -> float:
        """Predicted loss of one gene at a level."""
        return float(self.weights[gene] * self.tables[gene][level])

    def fit(self, candidates: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        """Weights from measured losses: the common one by least squares, then each gene's around it."""
        X, y = np.array([self._features(levels) for levels in candidates]), np.array(losses, dtype=float)
        total = X.sum(1)
        if not (total > 0).any():
            return
        common = float(total @ y / (total @ total))
        if common <= 0:
            return
        residual = y - common * total
        noise = max(float((residual**2).mean()), 1e-12)
        precision = X.T @ X / noise + np.eye(X.shape[1]) / (_SPREAD * common) ** 2
        change = np.linalg.solve(precision, X.T @ residual / noise)
        self.weights = np.maximum(common + change, _LEAST * common)

    def _features(self, levels: np.ndarray) -> np.ndarray:
        return np.array([table[level] for table, level in zip(self.tables, levels, strict=True)])


def rank_correlation(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman's ρ; None for fewer than three pairs or where one side is constant."""
    if len(predicted) < 3 or len(set(predicted)) == 1 or len(set(measured)) == 1:
        return None
    return float(spearmanr(predicted, measured).statistic)


def _at(curve: np.ndarray, rank: int | str) -> float:
    return 0.0 if rank == DENSE else float(curve[rank])


def _falling(losses: Sequence[float]) -> np.ndarray:
    """More of a matrix never costs more: the least curve above the guesses that falls with the level."""
    return np.maximum.accumulate(np.asarray(losses)[::-1])[::-1]
