"""SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774): masks whose kept weights compensate for removed ones."""

import torch

from sieve.compression.masks.config import PATTERNS
from sieve.compression.masks.nesting import keep_largest, keep_n_of_m

BLOCK = 128
"""Columns whose masks are chosen together; those behind hear of their errors at once, in one product."""


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

    Columns are gone through once, from left to right. What a masked weight would have contributed is taken on by the
    columns to come, in the proportions that R has (optimal brain surgery with the columns so far held fixed). Masks
    are chosen a block of columns at a time, by scores W² channels of the weights as they are by then.

    Args:
        W: [m, n]. channels: [n], 1 / R_jj² or what is fused from several.
        R: [n, n], upper triangular, Rᵀ R = (H + λ I)⁻¹ (`scores.inverse_root`).
        rank: weights kept per row; in each block, and over all, to within one.
        pattern, compare: as in `MaskOptions`. compare="layer" lets the weights of one block compete.
        dtype: that the result will be stored in, rounding being one more error to compensate. Default: W's.

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
        kept = None if groups else _chosen(left[start:end], channels[start:end], _share(rank, start, end, n), compare)
        errors = left.new_empty(end - start, m)
        for column in range(start, end):
            place = column - start
            if groups and column % groups[1] == 0:
                # N:M: a group is chosen when it is reached, with all compensation up to there.
                group = slice(column, column + groups[1])
                chosen = keep_n_of_m((left[group].square() * channels[group, None]).T, *groups).T
            keep = chosen[column % groups[1]] if groups else kept[place]
            result[column] = torch.where(keep, left[column], 0).to(dtype)
            error = (left[column] - result[column].to(work)) / R[column, column]
            left[column + 1 : end].addr_(R[column, column + 1 : end], error, alpha=-1)
            errors[place] = error
        left[end:].addmm_(R[start:end, end:].T, errors, alpha=-1)
    return result.T.contiguous()


def _share(rank: int, start: int, end: int, n: int) -> int:
    """Weights per row that these columns keep: shares of all blocks add up to `rank`."""
    return rank * end // n - rank * start // n


def _chosen(block: torch.Tensor, channels: torch.Tensor, count: int, compare: str) -> torch.Tensor:
    """bool [columns, m]: which weights of a block are kept, `count` per row or as many in all."""
    scores = block.square() * channels[:, None]
    if compare == "row":
        return keep_largest(scores.T, count).T
    return keep_largest(scores.reshape(-1), count * block.shape[1]).reshape(scores.shape)
