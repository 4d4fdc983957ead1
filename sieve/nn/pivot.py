"""Re-basing a low-rank pair so that some rows of its second factor are the identity (DESIGN 2.6), and rounding it."""

import torch

_RIDGE = 1e-4
"""Of the mean energy of z: how far C may move from the exact one in directions that the data do not show."""

_BLOCK = 32
"""Columns of C that are rounded one by one; those behind hear of their errors at once, in one product."""


def pivot(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The map B A as (A', C, permutation): y[permutation] = [z, C z] with z = A' x, in r² fewer numbers.

    With P the r rows of B to become the identity, A' = B_P A and C = B_rest B_P⁻¹. A QR of Bᵀ with pivoting of columns
    picks rows that are far from dependent, so that entries of C stay small: their size decides what rounding A' and C
    to 16 bits costs. Rows of P beyond the rank of B are not used for others (C has zero columns there), so a B without
    full rank is no special case.

    Not nested: the rows of one rank are not those of a smaller one.

    Args:
        A: [r, n], B: [m, r] with 1 ≤ r ≤ m, any float dtype.

    Returns: A' [r, n] and C [m - r, r], float64; permutation [m] int64, whose two parts ascend. On A's device.
    """
    import scipy.linalg  # takes a tenth of a second, which loading a model does not need

    r = B.shape[1]
    R, order = scipy.linalg.qr(B.detach().T.double().cpu().numpy(), mode="r", pivoting=True)
    order = torch.from_numpy(order).long()
    size = abs(R.diagonal())
    rank = max(1, int((size > size[0] * max(B.shape) * torch.finfo(torch.float64).eps).sum()))
    C = torch.zeros(B.shape[0] - r, r, dtype=torch.float64)
    if size[0] > 0:
        C[:, :rank] = torch.from_numpy(scipy.linalg.solve_triangular(R[:rank, :rank], R[:rank, r:]).T)
    ahead, of_ahead = order[:r].sort()
    behind, of_behind = order[r:].sort()
    based = B[ahead.to(B.device)].to("cpu", torch.float64) @ A.to("cpu", torch.float64)
    C, permutation = C[of_behind][:, of_ahead], torch.cat([ahead, behind])
    return based.to(A.device), C.to(A.device), permutation.to(A.device)


def rounded_pivot(
    A: torch.Tensor, B: torch.Tensor, dtype: torch.dtype, gram: torch.Tensor | None, energy: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`pivot` in a dtype, with what 16 bits lose made good where the data are known.

    y_rest = C z adds up many outputs z that have much in common, so the rounding of A' and C weighs more here than in a
    plain pair. Therefore C is fitted to the z that the rounded A' gives on the calibration data, and rounded column
    by column, the error of each passed on to the columns to come (as GPTQ does, arXiv 2210.17323).

    Args:
        A: [r, n], B: [m, r]. gram: [n, n], of the inputs, or None where outputs were watched.
        energy: output energy of each direction, descending, at least r of them; None: no data are known.

    Returns: A' [r, n], C [m - r, r] in `dtype`, permutation [m] int64.
    """
    device, rank = A.device, B.shape[1]
    based, C, permutation = (t.cpu() for t in pivot(A, B))
    rounded = based.to(dtype)
    if dtype.itemsize > 2 or energy is None or not energy.any():
        return rounded.to(device), C.to(device, dtype), permutation.to(device)
    # H [r, r], the Gram matrix of z, and what C is to be for it: min Σ |C_exact A' x - C z|².
    if gram is None:
        P = B.cpu().double()[permutation[:rank]]
        H = P * energy[:rank] @ P.T
        wanted = C @ H
    else:
        seen = rounded.double() @ gram.cpu().double()
        H = seen @ rounded.double().T
        wanted = C @ based @ seen.T
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
