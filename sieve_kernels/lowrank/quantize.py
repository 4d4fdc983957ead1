"""Factors in 8 or 4 bits: quantisation of a matrix to integers and scales, and back."""

import torch
from torch import Tensor

from sieve_kernels.core.checks import describe, require_float

GROUP = 64
"""Elements along a row that share a scale in 4 bits."""


def quantize_rows(W: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers q and scales of a matrix, by the largest magnitude that shares a scale; rounded to nearest.

    8 bits: one scale per row, W[i, j] ≈ q[i, j] · scale[i] with -127 ≤ q ≤ 127.
    4 bits: one scale per row and group of 64 columns, W[i, j] ≈ v · scale[i, j // 64] with -7 ≤ v ≤ 7. A byte of q
    holds v + 8 of two columns: the even one in its low four bits, the odd one in its high four. If the number of
    columns is odd, the last byte's high half is 8, which is zero.

    Args:
        W: matrix [rows, columns], float64, float32, bfloat16 or float16.
        bits: 8 or 4.

    Returns:
        q: int8 [rows, columns], or uint8 [rows, ⌈columns / 2⌉] for 4 bits.
        scale: float32 [rows], or [rows, ⌈columns / 64⌉] for 4 bits. 1 where all elements are
            zero, or so small (below 2e-36) that they become zero.

    Raises:
        ValueError: W is no matrix, or bits is neither 8 nor 4.
        TypeError: W is not a float.

    Example:
        >>> q, scale = quantize_rows(torch.tensor([[1.0, -2.0]]), 8)
        >>> q, scale * 127
        (tensor([[  64, -127]], dtype=torch.int8), tensor([2.]))
    """
    if bits not in (8, 4):
        raise ValueError(f"bits must be 8 or 4, got {bits}")
    if W.dim() != 2:
        raise ValueError(f"W must be a matrix [rows, columns], got {describe(W)}")
    require_float("W", W)
    W = W.detach().float()
    if bits == 8:
        scale = _scale(W, 127)
        return torch.round(W / scale[:, None]).to(torch.int8), scale
    rows, columns = W.shape
    groups = -(-columns // GROUP)
    padded = torch.nn.functional.pad(W, (0, groups * GROUP - columns)).reshape(rows, groups, GROUP)
    scale = _scale(padded, 7)
    nibbles = (torch.round(padded / scale[..., None]) + 8).to(torch.uint8).reshape(rows, groups * GROUP)
    return (nibbles[:, ::2] | nibbles[:, 1::2] << 4)[:, : (columns + 1) // 2].contiguous(), scale


def _scale(W: Tensor, most: int) -> Tensor:
    scale = W.abs().amax(-1) / most if W.shape[-1] else W.new_zeros(W.shape[:-1])
    # A subnormal scale is imprecise, so quotients by it could exceed the integers' range.
    return torch.where(scale < torch.finfo(scale.dtype).tiny, 1.0, scale)


def dequantize_rows(q: Tensor, scale: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """The matrix [rows, columns] that q and its scales stand for; see `quantize_rows`."""
    scale = scale.to(dtype)
    if q.dtype == torch.int8:
        return q * scale[:, None]
    nibbles = torch.stack([q & 15, q >> 4], -1).view(q.shape[0], 2 * q.shape[1])[:, :columns]
    return (nibbles.to(dtype) - 8) * scale.repeat_interleave(GROUP, 1)[:, :columns]
