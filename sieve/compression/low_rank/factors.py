"""Nested factors: one pair (A, B) per matrix whose leading slices serve every rank."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sieve.errors import InputError
from sieve.models.linears import prunable
from sieve.models.matrix import DENSE, Matrix
from sieve.nn.elastic_linear import SlicedLinear


@dataclass(frozen=True)
class FactorPair:
    """Factors of one matrix W [m, n], best first: rank r is A[:r] and B[:, :r].

    A: [R, n], B: [m, R], in the weight's dtype and on its device; R is the largest rank that saves parameters
    (`Matrix.max_rank`).
    energy: [min(m, n)] float64 on the CPU, output energy of each direction on the calibration tokens, descending
    within the rank of the data.
    gram: [n, n], that of the inputs, as calibration left it (shared, not a copy), or None where outputs were watched.
    mean: [n] and output_mean: [m], float32, of the inputs and of the bias-free outputs W x: if they are there, the pair
        serves what the input is beyond its mean, y = B A (x - mean) + output_mean (DESIGN 2.4).
    """

    A: torch.Tensor
    B: torch.Tensor
    energy: torch.Tensor
    gram: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    output_mean: torch.Tensor | None = None

    @property
    def max_rank(self) -> int:
        return self.A.shape[0]

    def slice(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views A[:rank], B[:, :rank]."""
        return self.A[:rank], self.B[:, :rank]

    def shift(self, rank: int) -> torch.Tensor | None:
        """What the bias is to be raised by at this rank [m], float32; None where nothing is centred."""
        if self.mean is None:
            return None
        A, B = self.slice(rank)
        return self.output_mean - B.float() @ (A.float() @ self.mean)

    def lost(self, rank: int) -> float:
        """Share of the output energy lost at this rank, Σ_{i>r} λ_i / Σ λ_i (DESIGN 2.1), in [0, 1]."""
        total = float(self.energy.sum())
        return float(self.energy[rank:].sum()) / total if total > 0 else 0.0


def slices_of(layer: nn.Module, pair: FactorPair) -> SlicedLinear:
    """The dense layer, or any rank of the pair."""
    return SlicedLinear(layer, pair.A, pair.B, pair.mean, pair.output_mean)


class Factors(dict[str, FactorPair]):
    """Matrix name → `FactorPair`, with the method that made them and whether their pairs are to be stored pivoted.

    `ridge` is what the loss-aware method chose (`choose_ridge`), infinite where gradients have no say; `shrinkage` the
    share of a prior in the Gram matrices (`choose_shrinkage`).
    """

    def __init__(
        self,
        pairs: Mapping[str, FactorPair],
        method: str,
        pivoted: bool = False,
        ridge: float = math.inf,
        shrinkage: float = 0.0,
    ):
        super().__init__(pairs)
        self.method, self.pivoted, self.ridge, self.shrinkage = method, pivoted, ridge, shrinkage

    def matrices(self, model: nn.Module) -> dict[str, Matrix]:
        """The model's prunable matrices, as these factors store them."""
        return prunable(model, self.pivoted)

    def fingerprint(self) -> str:
        """sha256 of the method and what the factors add up to."""
        sums = [(name, pair.A.double().sum().item(), pair.B.double().sum().item()) for name, pair in self.items()]
        return hashlib.sha256(repr((self.method, self.pivoted, sums)).encode()).hexdigest()

    def check(self, matrices: Mapping[str, Matrix], plan: Mapping[str, int | str]) -> None:
        """InputError unless these factors fit the matrices and reach every rank of the plan."""
        for name, pair in self.items():
            matrix = matrices.get(name)
            if matrix is None or (matrix.m, matrix.n) != (pair.B.shape[0], pair.A.shape[1]):
                raise InputError(
                    f"the factors of {name} do not fit this model: project them again from its own weights "
                    "(sieve.apply_ works on the dense model)"
                )
        for name, rank in plan.items():
            if rank == DENSE:
                continue
            if name not in self:
                raise InputError(f"the plan prunes {name}, but there are no factors for it")
            if rank > self[name].max_rank:
                raise InputError(
                    f"the plan gives {name} rank {rank}; above {self[name].max_rank} a pair is no smaller "
                    "than the matrix, so use 'dense'"
                )
