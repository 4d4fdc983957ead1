"""A low-rank pair plus a masked residual: W ≈ B A + S.

After OATS (Zhang and Papyan 2024, arXiv 2409.13652), which alternates between the two. Here each step is Sieve's method
for this part alone: the output-aligned projection, and SparseGPT's mask with its update.
"""

import torch

from sieve.compression.low_rank.output_aligned import output_aligned
from sieve.compression.masks.scores import inverse_root, of_channels
from sieve.compression.masks.sparsegpt import sparsegpt

ROUNDS = 4


@torch.no_grad()
def low_rank_plus_mask(
    W: torch.Tensor, H: torch.Tensor, rank: int, kept: int, tokens: int, rounds: int = ROUNDS, damping: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A pair and a sparse rest whose sum has little output error tr((W - B A - S) H (W - B A - S)ᵀ).

    Alternately, each part is fitted to W minus the other; the best combination found is returned.

    Args:
        W: [m, n] float64. H: [n, n] float64, the inputs' Gram matrix per token.
        rank: of the pair, 0 for none; at most min(m, n). kept: weights a row of S, 0 for none; at most n.
        tokens: number of tokens that H was measured on.
        rounds: how often both parts are fitted.

    Returns: A [rank, n], B [m, rank], S [m, n] float64; r (m + n) + kept m numbers that are not zero.
    """
    m, n = W.shape
    if not 0 <= rank <= min(m, n) or not 0 <= kept <= n:
        raise ValueError(f"rank must be in 0…{min(m, n)} and kept in 0…{n}, got {rank} and {kept}")
    root, channels = inverse_root(H, damping), of_channels(H, "sparsegpt", damping)
    S = torch.zeros_like(W)
    best, least = None, float("inf")
    for _ in range(rounds if rank and kept else 1):
        A, B = W.new_zeros(0, n), W.new_zeros(m, 0)
        if rank:
            A, B, _ = output_aligned(W - S, H, "input", tokens)
            A, B = A[:rank], B[:, :rank]
        S = sparsegpt(W - B @ A, channels, root, kept) if kept else S
        rest = W - B @ A - S
        error = float(((rest @ H) * rest).sum())
        if best is None or error < least:
            best, least = (A, B, S), error
    return best
