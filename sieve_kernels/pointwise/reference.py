"""Definitions of the pointwise operators in plain torch, step by step as the modules of transformers compute them."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
"""By the names that users give."""

ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _aten.silu_backward,
    "gelu": _aten.gelu_backward,
    "gelu_tanh": partial(_aten.gelu_backward, approximate="tanh"),
    "relu": lambda grad, gate: _aten.threshold_backward(grad, gate, 0),
}
"""Gradient of the gate, given that of the activated gate."""


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


def act_mul(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """act(gate) · up; gate and up [..., m]."""
    return ACTIVATIONS[activation](gate) * up


def act_mul_backward(grad: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up [..., m], given that of act(gate) · up, grad [..., m]."""
    return ACTIVATION_GRADIENTS[activation](grad * up, gate), grad * ACTIVATIONS[activation](gate)


def join_columns(z: Tensor, c: Tensor, index: Tensor, bias: Tensor | None) -> Tensor:
    """y[t, j] = [z, c][t, index[j]] + bias[j]; z [T, r], c [T, m - r], index [m], bias [m] → [T, m]."""
    return gather_columns(torch.cat([z, c], 1), index, bias)


def gather_columns(x: Tensor, index: Tensor, bias: Tensor | None = None) -> Tensor:
    """y[t, j] = x[t, index[j]] + bias[j]; x [T, n], index [m], bias [m] → [T, m]."""
    y = x.index_select(1, index)
    return y if bias is None else y + bias
