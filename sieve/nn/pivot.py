"""Re-basing a low-rank pair so that some rows of its second factor are the identity (DESIGN 2.6)."""

import scipy.linalg
import torch


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
