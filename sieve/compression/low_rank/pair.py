"""The nested factors of one matrix."""

from dataclasses import dataclass

import torch


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

    def rank_holding(self, share: float) -> int:
        """The least rank that keeps this share of the output energy, 0 < share < 1; 0 where there is none."""
        total = float(self.energy.sum())
        if total <= 0:
            return 0
        return int((self.energy.cumsum(0) < share * total).sum()) + 1

    def lost(self, rank: int) -> float:
        """Share of the output energy lost at this rank, Σ_{i>r} λ_i / Σ λ_i (DESIGN 2.1), in [0, 1]."""
        total = float(self.energy.sum())
        return float(self.energy[rank:].sum()) / total if total > 0 else 0.0
