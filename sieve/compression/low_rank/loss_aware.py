"""The loss-aware projection: the best map where an output error counts as the task's loss sees it (DESIGN 2.2)."""

import math

import torch

from sieve.calibration.gradients import column_basis
from sieve.compression.low_rank.methods import LOSS_AWARE, WIDTHS
from sieve.compression.low_rank.output_aligned import output_aligned
from sieve.compression.low_rank.problem import Problem, Solution
from sieve.registry import implements


def loss_aware(
    W: torch.Tensor, gram: torch.Tensor, side: str, tokens: int, gradient: torch.Tensor, ridge: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The map of every rank that minimises Σ_t e_tᵀ H e_t, e_t = (W - M) x_t, as one nested pair.

    H = G / mean(diag G) + ridge I, with G the Gram matrix of the loss's gradients at the outputs. With H = L Lᵀ the
    objective is the squared error of the outputs of Lᵀ W: `output_aligned` solves that, and M = L⁻ᵀ (its map). Any root
    of H gives the same M; this one is triangular. ridge → ∞ is `output_aligned` itself, and so is G = 0.

    For m > n the best M has the range of W. With W = Q R the problem is that of R and Qᵀ G Q, at n×n.

    Args:
        W, gram, side, tokens: as for `output_aligned`.
        gradient: G [k, k] float64, k = min(m, n), in the coordinates of `column_basis(W)` where m > n.
        ridge: λ > 0; no less than the resolution of G, whose sums were kept in float32.

    Returns: as `output_aligned`; B's columns are not orthonormal, and energy is that of the outputs of Lᵀ W.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    m, n = W.shape
    mean = gradient.diagonal().mean()
    if math.isinf(ridge) or not mean > 0:
        return output_aligned(W, gram, side, tokens)
    Q = None
    if m > n:
        Q, W = column_basis(W)
        gram = gram if side == "input" else Q.T @ gram @ Q
    k = W.shape[0]
    H = (gradient + gradient.T) / (2 * mean)
    H.diagonal().add_(max(ridge, k * torch.finfo(torch.float32).eps))
    L = torch.linalg.cholesky(H)
    A, B, energy = output_aligned(L.T @ W, gram if side == "input" else L.T @ gram @ L, side, tokens)
    B = torch.linalg.solve_triangular(L.T, B, upper=True)
    return A, B if Q is None else Q @ B, energy


@implements(WIDTHS)
@implements(LOSS_AWARE)
def solve(problem: Problem) -> Solution:
    """`loss_aware` of a problem; `output_aligned` where nothing is known of gradients."""
    gradient = problem.gram.new_zeros(1, 1) if problem.gradient is None else problem.gradient
    return loss_aware(problem.W, problem.gram, problem.side, problem.tokens, gradient, problem.ridge)
