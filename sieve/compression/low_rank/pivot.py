"""The pivoted form of factors, with what the rounding of 16 bits loses made good (DESIGN 2.6)."""

import torch

from sieve.compression.low_rank.pair import FactorPair
from sieve.nn.pivot import pivot

_RIDGE = 1e-4
"""Of the mean energy of z: how far C may move from the exact one in directions that the data do not show."""

_BLOCK = 32
"""Columns of C that are rounded one by one; those behind hear of their errors at once, in one product."""


def pivoted(pair: FactorPair, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`pivot` of the pair's slice at this rank, in its dtype, with what 16 bits lose made good where they can.

    y_rest = C z adds up many outputs z that have much in common, so the rounding of A' and C weighs more here than in a
    plain pair. Therefore C is fitted to the z that the rounded A' gives on the calibration data, and rounded column
    by column, the error of each passed on to the columns to come (as GPTQ does, arXiv 2210.17323).

    Returns: A' [r, n], C [m - r, r] in the pair's dtype, permutation [m] int64.
    """
    dtype, device = pair.A.dtype, pair.A.device
    A, C, permutation = (t.cpu() for t in pivot(*pair.slice(rank)))
    rounded = A.to(dtype)
    if dtype.itemsize > 2 or not pair.energy.any():
        return rounded.to(device), C.to(device, dtype), permutation.to(device)
    # H [r, r], the Gram matrix of z, and what C is to be for it: min Σ |C_exact A' x - C z|².
    if pair.gram is None:
        P = pair.B[:, :rank].cpu().double()[permutation[:rank]]
        H = P * pair.energy[:rank] @ P.T
        wanted = C @ H
    else:
        seen = rounded.double() @ pair.gram.cpu().double()
        H = seen @ rounded.double().T
        wanted = C @ A @ seen.T
    ridge = _RIDGE * H.diagonal().mean()
    H.diagonal().add_(ridge)
    C = torch.linalg.solve(H, (wanted + ridge * C).T).T
    return rounded.to(device), _round(C, H, dtype).to(device), permutation.to(device)


def _round(C: torch.Tensor, H: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """C [k, r] in `dtype` with tr((C - rounded) H (C - rounded)ᵀ) small: each column's error goes to the later ones."""
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    left, r = C.T.clone(), C.shape[1]
    result = torch.empty_like(left, dtype=dtype)
    for start in range(0, r, _BLOCK):
        end = min(start + _BLOCK, r)
        errors = left.new_empty(end - start, left.shape[1])
        for column in range(start, end):
            result[column] = left[column].to(dtype)
            error = (left[column] - result[column].double()) / upper[column, column]
            left[column + 1 : end].addr_(upper[column, column + 1 : end], error, alpha=-1)
            errors[column - start] = error
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return result.T.contiguous()
