"""Definitions of the pointwise operators in plain torch, step by step as the modules of transformers compute them."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """y = weight · x / √(mean x² + ε), over the last dimension; x [..., n], weight [n]. At least float32 inside."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv 2104.09864) of q [b, h, t, d] and k [b, g, t, d]; cos and sin [b or 1, t, d]."""
    cos, sin = cos[:, None], sin[:, None]
    return tuple(x * cos + _half_turn(x) * sin for x in (q, k))


def _half_turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def channel_sums(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Σ x, Σ |x| and Σ x² over the tokens; x [..., n], mask [T] bool → [3, n], at least float32."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if mask is None else rows[mask]
    wide = torch.promote_types(x.dtype, torch.float32)
    norms = [torch.linalg.vector_norm(rows, order, dim=0, dtype=wide) for order in (1, 2)]
    return torch.stack([rows.sum(0, dtype=wide), norms[0], norms[1].square()])
