"""A low-rank pair in few bits: a basis, scales and a second factor that lose least."""

from __future__ import annotations

import torch

from sieve_kernels import dequantize_rows, quantize_rows
from sieve_kernels.lowrank.quantize import GROUP

_RIDGE = 1e-10
_CLIPS = tuple(step / 20 for step in range(20, 9, -1))  # of the largest magnitude, which the rest of a row pays for


def quantize_pair(
    A: torch.Tensor, B: torch.Tensor, bits: int, gram: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The map B A in integers with scales.

    The pair is first brought into the basis of its outputs' principal directions, where B is orthonormal: its entries
    are alike in size there, and what one of them loses does not add up with what another loses. In other bases, such as
    that of a pivoted pair, the error of the map is three times as large. Then A is fitted to the B that was rounded.

    Args:
        A: [r, n], B: [m, r]. gram: [n, n], of the inputs x on the calibration data: outputs are B A x. None: as for
            inputs without correlations, all of the same energy.

    Returns: A_q, A_scale, B_q, B_scale, as `quantize_rows` has them.
    """
    inputs = None if gram is None else gram.diagonal().float()
    A, B, energy = _principal(A.double(), B.double(), gram)
    B_q, B_scale = quantize_for(B.float(), bits, energy)
    rounded = dequantize_rows(B_q, B_scale, B.shape[1], torch.float64)
    H = rounded.T @ rounded
    H.diagonal().add_(_RIDGE * H.diagonal().mean() + torch.finfo(torch.float32).tiny)  # columns may be zero
    A_q, A_scale = quantize_for((torch.linalg.solve(H, rounded.T @ B) @ A).float(), bits, inputs)
    return A_q, A_scale, B_q, B_scale


def _principal(
    A: torch.Tensor, B: torch.Tensor, gram: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The same map with an orthonormal B, and the energy of each entry of A x, descending; float64."""
    m, r = B.shape
    if r > m:  # no such basis
        return A, B, None
    Q, R = torch.linalg.qr(B)
    seen = R @ A
    energy, U = torch.linalg.eigh(seen @ (seen.T if gram is None else gram.double() @ seen.T))
    energy, U = energy.flip(0).clamp(min=0), U.flip(1)
    B = torch.where((B == 0).all(1, keepdim=True), 0, Q @ U)  # rows of zeros stay so to the last digit
    return U.T @ seen, B, energy


def quantize_for(W: torch.Tensor, bits: int, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_rows` of W with each scale chosen for the least Σ_j importance_j (W - W quantised)².

    Large numbers are cut off where that makes up for itself in the others that share the scale.

    Args:
        W: [rows, columns] float32. bits: 8 or 4.
        importance: [columns], as the energy of what each column is multiplied by; None: all are alike.

    Returns: integers and scales, as `quantize_rows` has them.
    """
    rows, columns = W.shape
    width = columns if bits == 8 else GROUP
    groups = -(-columns // width)
    fill = groups * width - columns
    shared = torch.nn.functional.pad(W, (0, fill)).reshape(rows, groups, width)
    weights = torch.ones(columns, device=W.device) if importance is None else importance.to(W)
    weights = torch.nn.functional.pad(weights, (0, fill)).reshape(groups, width)
    most, largest = 2 ** (bits - 1) - 1, shared.abs().amax(-1, keepdim=True)
    best, limit = torch.full_like(largest, torch.inf), largest
    for clip in _CLIPS:
        scale = (largest * clip / most).clamp(min=torch.finfo(W.dtype).tiny)
        rounded = torch.round(shared / scale).clamp(-most, most) * scale
        error = ((rounded - shared).square() * weights).sum(-1, keepdim=True)
        limit = torch.where(error < best, largest * clip, limit)
        best = torch.minimum(error, best)
    clipped = torch.maximum(torch.minimum(shared, limit), -limit)
    return quantize_rows(clipped.reshape(rows, -1)[:, :columns], bits)
