"""The output-aligned projection in closed form (the objective of LLM-Sieve, arXiv 2505.18350)."""

import torch

from sieve.compression.low_rank.methods import OUTPUT_ALIGNED
from sieve.compression.low_rank.problem import Problem, Solution
from sieve.registry import implements


def output_aligned(
    W: torch.Tensor, gram: torch.Tensor, side: str, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best map of every rank in mean squared output error, as one nested pair.

    Over all rank-r maps M, Σ_t |W x_t - M x_t|² is least at M_r = U_r U_rᵀ W with U_r the leading eigenvectors of
    C_y = W C Wᵀ = Σ_t y_t y_tᵀ (Eckart-Young on the outputs W X). No inverse is taken, so singular C is no special
    case.

    For m > n the outputs lie in the n-dimensional range of W. With the thin W = Q R, Q orthonormal, C_y has the
    eigenvectors Q U' where U' are those of R C Rᵀ: the problem is solved for R, at n×n.

    Directions beyond the rank of the data carry no output on the calibration tokens and are arbitrary for the
    objective. They are ordered by what of W they hold, the limit δ → 0 of W (C + δ I) Wᵀ: exact on the calibration
    data, and the best guess for inputs it has not seen.

    Args:
        W: [m, n] float64. gram: C [n, n] (side "input") or C_y [m, m] (side "output"), float64.
        tokens: how many rows were summed; bounds the rank of the data.

    Returns: A [k, n], B [m, k], energy [k] with k = min(m, n); B has orthonormal columns, A = Bᵀ W, and
        energy_i = Σ_t (b_i · y_t)², descending within the rank of the data.
    """
    m, n = W.shape
    Q = None
    if m > n:
        Q, W = torch.linalg.qr(W)
    if side == "input":
        C_y = W @ gram @ W.T
    else:
        C_y = gram if Q is None else Q.T @ gram @ Q
    energy, U = torch.linalg.eigh((C_y + C_y.T) / 2)
    energy, U = energy.flip(0).clamp(min=0), U.flip(1)
    # The sums were kept in float32: what lies below its resolution of the largest eigenvalue is rounding.
    rank = min(tokens, int((energy > energy[0] * torch.finfo(torch.float32).eps).sum()))
    if rank < len(energy):
        rest = U[:, rank:]
        held = rest.T @ W
        _, order = torch.linalg.eigh(held @ held.T)
        U = torch.cat([U[:, :rank], rest @ order.flip(1)], dim=1)
    return U.T @ W, U if Q is None else Q @ U, energy


@implements(OUTPUT_ALIGNED)
def solve(problem: Problem) -> Solution:
    """`output_aligned` of a problem."""
    return output_aligned(problem.W, problem.gram, problem.side, problem.tokens)
