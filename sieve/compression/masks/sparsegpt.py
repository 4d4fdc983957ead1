"""SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774): masks whose kept weights compensate for removed ones."""

import torch

from sieve.compression.masks.config import PATTERNS
from sieve.compression.masks.nesting import keep_largest, keep_n_of_m

BLOCK = 128
"""Columns whose masks are chosen together; their errors reach all later columns in one matrix product."""


def sparsegpt(
    W: torch.Tensor,
    channels: torch.Tensor,
    R: torch.Tensor,
    rank: int,
    pattern: str = "unstructured",
    compare: str = "row",
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """W with `rank` weights a row kept and changed so that outputs change little: min Σ_t |(W - M) x_t|², greedily.

    Columns are visited once, from left to right. The contribution of a masked weight is taken over by the
    later columns, in the proportions of R (optimal brain surgery with the earlier columns held fixed). Masks
    are chosen for a block of columns at a time, by the scores W² channels of the already compensated weights.

    Args:
        W: [m, n]. channels: [n], 1 / R_jj² or what is fused from several.
        R: [n, n], upper triangular, Rᵀ R = (H + λ I)⁻¹ (`scores.inverse_root`).
        rank: weights kept per row; in each block, and over all, to within one.
        pattern, compare: as in `MaskOptions`. compare="layer" lets the weights of one block compete.
        dtype: of the stored result; its rounding is one more error to compensate. Default: W's.

    Returns: [m, n] in `dtype`.
    """
    m, n = W.shape
    dtype = dtype or W.dtype
    work = torch.float32 if R.dtype == torch.float32 or W.device.type == "mps" else torch.float64
    left, R, channels = W.T.to(work, copy=True).contiguous(), R.to(work), channels.to(work)
    result = torch.zeros(n, m, dtype=dtype, device=W.device)
    groups = PATTERNS[pattern]
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        # Without a pattern, the masks of the whole block are chosen now.
        kept = None if groups else _chosen(left[start:end], channels[start:end], _share(rank, start, end, n), compare)
        errors = left.new_empty(end - start, m)
        for column in range(start, end):
            place = column - start
            if groups and column % groups[1] == 0:
                # N:M: choose a group when it is reached, so that it sees all compensation up to there.
                group = slice(column, column + groups[1])
                chosen = keep_n_of_m((left[group].square() * channels[group, None]).T, *groups).T
            keep = chosen[column % groups[1]] if groups else kept[place]
            result[column] = torch.where(keep, left[column], 0).to(dtype)
            # Spread this column's error over the rest of the block; later blocks get it in one product below.
            error = (left[column] - result[column].to(work)) / R[column, column]
            left[column + 1 : end].addr_(R[column, column + 1 : end], error, alpha=-1)
            errors[place] = error
        left[end:].addmm_(R[start:end, end:].T, errors, alpha=-1)
    return result.T.contiguous()


def _share(rank: int, start: int, end: int, n: int) -> int:
    """Number of weights per row that these columns keep; the numbers of all blocks add up to `rank`."""
    return rank * end // n - rank * start // n


def _chosen(block: torch.Tensor, channels: torch.Tensor, count: int, compare: str) -> torch.Tensor:
    """bool [columns, m]: which weights of a block are kept, `count` per row or as many in all."""
    scores = block.square() * channels[:, None]
    if compare == "row":
        return keep_largest(scores.T, count).T
    return keep_largest(scores.reshape(-1), count * block.shape[1]).reshape(scores.shape)
