"""How much a weight matters: the base scores, each a function of the weight times one of its input channel.

    magnitude   |W_ij|                                                Han et al. 2015, arXiv 1506.02626
    wanda       W_ij² H_jj, the square of |W_ij| ‖x_j‖                 Sun et al. 2023, arXiv 2306.11695
    sparsegpt   W_ij² / R_jj², H⁻¹ = Rᵀ R, R upper triangular          Frantar and Alistarh 2023, arXiv 2301.00774
    ria         (|W_ij| / Σ_k |W_ik| + |W_ij| / Σ_k |W_kj|) ‖x_j‖^½    Zhang et al. 2024, arXiv 2402.18004

H is the Gram matrix of the inputs per token, so calibration sets of different length weigh the same. Since only the
channel's factor depends on data, two calibration sets are fused factor by factor (`task_aware`).
"""

from typing import Protocol

import torch

from sieve.compression.masks.methods import MAGNITUDE, MASKING, RIA, SPARSEGPT, WANDA
from sieve.registry import implements, method_named

FLOOR = 1e-12
"""Fraction of the mean that stands for a channel without activity: its weights go first, the smallest before others."""


class Score(Protocol):
    """One way to score weights."""

    def of_weights(self, W: torch.Tensor) -> torch.Tensor:
        """The part that depends on the weights, [m, n] ≥ 0."""

    def of_channels(self, energy: torch.Tensor, root: torch.Tensor | None) -> torch.Tensor:
        """The part that depends on the inputs, [n] > 0; energy: [n] > 0, mean of x²; root: where weights compensate."""


@implements(MAGNITUDE)
class Magnitude:
    """|W_ij|."""

    def of_weights(self, W: torch.Tensor) -> torch.Tensor:
        return W.abs()

    def of_channels(self, energy: torch.Tensor, root: torch.Tensor | None) -> torch.Tensor:
        return torch.ones_like(energy)


@implements(WANDA)
class Wanda:
    """W_ij² H_jj."""

    def of_weights(self, W: torch.Tensor) -> torch.Tensor:
        return W.abs().square()

    def of_channels(self, energy: torch.Tensor, root: torch.Tensor | None) -> torch.Tensor:
        return energy


@implements(SPARSEGPT)
class SparseGPT(Wanda):
    """W_ij² / R_jj²."""

    def of_channels(self, energy: torch.Tensor, root: torch.Tensor | None) -> torch.Tensor:
        return root.diagonal().square().reciprocal()


@implements(RIA)
class Ria:
    """Relative importance in row and column, times the root of the channel's norm."""

    def of_weights(self, W: torch.Tensor) -> torch.Tensor:
        size = W.abs()
        rows, columns = size.sum(1, keepdim=True), size.sum(0, keepdim=True)
        # Avoid 0 / 0: a row of zeros has scores of zero.
        tiny = torch.finfo(size.dtype).tiny
        return size / rows.clamp(min=tiny) + size / columns.clamp(min=tiny)

    def of_channels(self, energy: torch.Tensor, root: torch.Tensor | None) -> torch.Tensor:
        return energy.sqrt().sqrt()


def of_weights(W: torch.Tensor, method: str) -> torch.Tensor:
    """The part of the score that depends on the weights, [m, n] ≥ 0."""
    return _score(method).of_weights(W)


def of_channels(H: torch.Tensor, method: str, damping: float, root: torch.Tensor | None = None) -> torch.Tensor:
    """The part that depends on the inputs, [n] > 0. H [n, n] float64; all ones where H is zero.

    `root`: `inverse_root(H, damping)` for a method that compensates, if it is known already.
    """
    energy = H.diagonal().clamp(min=0)
    mean = energy.mean()
    if not mean > 0:
        return torch.ones_like(energy)
    if root is None and method_named(method, MASKING).compensates:
        root = inverse_root(H, damping)
    return _score(method).of_channels(energy.clamp(min=FLOOR * mean), root)


def _score(method: str) -> Score:
    return method_named(method, MASKING).implementation()()


def inverse_root(H: torch.Tensor, damping: float) -> torch.Tensor:
    """R [n, n], upper triangular with Rᵀ R = (H + λ I)⁻¹, λ = `damping` × H's mean diagonal, so nothing is singular.

    For H = 0, without any information, R is the identity.
    """
    mean = H.diagonal().mean()
    if not mean > 0:
        return torch.eye(H.shape[0], dtype=H.dtype, device=H.device)
    damped = (H + H.T) / 2
    # Damping must exceed the resolution of float32 sums, or rounding could make H indefinite.
    damped.diagonal().add_(max(damping, H.shape[0] * torch.finfo(torch.float32).eps) * mean)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
