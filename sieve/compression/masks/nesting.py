"""Scores → nested masks: for every weight the least rank at which it is kept."""

import torch

from sieve.compression.masks.config import PATTERNS

_SORTED = 1 << 24
"""Number of scores sorted at a time: while sorting, positions take 8 bytes each, later ranks only 2."""


def dtype_of(n: int) -> torch.dtype:
    """Of thresholds 1 … n: int16 where that suffices, else int32."""
    return torch.int16 if n <= torch.iinfo(torch.int16).max else torch.int32


def nested_thresholds(scores: torch.Tensor, pattern: str = "unstructured", compare: str = "row") -> torch.Tensor:
    """The least rank (weights kept per row, see `MaskedMatrix`) at which each weight is kept.

    One table serves every rank r: the mask is `order <= r`, and keeps exactly r m weights. Of equal scores the first
    wins.

    Args: scores [m, n]; for N:M, M divides n.

    Returns: [m, n] of `dtype_of(n)`; 1 … n. N:M has one mask: 1 where kept, n where not.
    """
    m, n = scores.shape
    dtype = dtype_of(n)
    if pattern != "unstructured":
        kept = keep_n_of_m(scores, *PATTERNS[pattern])
        return torch.where(kept, 1, n).to(dtype)
    if compare == "row":
        some = max(_SORTED // n, 1)
        return torch.cat([(_places(rows) + 1).to(dtype) for rows in scores.split(some)])
    return (_places(scores.reshape(1, -1)).reshape(m, n) // m + 1).to(dtype)


def keep_n_of_m(scores: torch.Tensor, kept: int, of: int) -> torch.Tensor:
    """bool [..., n]: of every `of` consecutive scores the `kept` largest, of equal ones the first."""
    groups = scores.unflatten(-1, (-1, of))
    return (_places(groups) < kept).flatten(-2)


def keep_largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """bool, the shape of `scores` [..., n]: the `count` largest along the last dimension."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    return kept.scatter_(-1, scores.topk(count, dim=-1, sorted=False).indices, True) if count else kept


def _places(scores: torch.Tensor) -> torch.Tensor:
    """int64, the shape of `scores`: each one's place along the last dimension, 0 for the largest."""
    by_size = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(by_size)
    return torch.empty_like(by_size).scatter_(-1, by_size, places)
