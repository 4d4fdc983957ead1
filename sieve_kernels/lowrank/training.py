"""Training layers for many rows on a GPU: torch's own products, whose backward passes read intermediates that the
forward pass has stored.

Elsewhere the operators recompute intermediates to save memory, at a sixth more arithmetic for a pair and a third for a
gated layer. A layer here stores at most what separate torch layers store: gate and up, but not the activated gate.
"""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.core import dispatch
from sieve_kernels.pointwise import reference
from sieve_kernels.pointwise.joints import act_mul, join_columns

FEW_ELEMENTS = 1 << 22
"""Up to this number of gate outputs a step is limited by the host: three torch operators take less host time than our
fused pass and its gradients, and they store little."""


def by_library(x: Tensor, *tensors: Tensor | None) -> bool:
    """Whether a layer of these tensors is computed here: gradients are required for many rows on a GPU, and no other
    implementation is requested."""
    if not torch.is_grad_enabled() or not _many_on_gpu(x):
        return False
    wanted = x.requires_grad or any(t is not None and t.requires_grad for t in tensors)
    return wanted and os.environ.get(dispatch.VARIABLE) in (None, "", "torch")


def _many_on_gpu(x: Tensor) -> bool:
    return x.is_cuda and x.numel() > dispatch.GEMV_ROWS_GPU * x.shape[-1]


def linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None) -> Tensor:
    """y [..., m] = (x Aᵀ) Bᵀ + bias; x [..., n], A [r, n], B [m, r], bias [m]."""
    return F.linear(F.linear(x, A), B, bias)


def pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None = None) -> Tensor:
    """y [..., m], y[..., permutation] = [z, z Cᵀ] + bias[permutation], z = x Aᵀ.

    x [..., n], A [r, n], C [m - r, r], permutation [m] int64, bias [m].
    """
    z = F.linear(x, A)
    return join_columns(z, F.linear(z, C), permutation, bias)


def swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Tensor:
    """y [..., m] = act(gate) · up; x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q]."""
    return gated(linear(x, A_gate, B_gate), linear(x, A_up, B_up), activation)


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """act(gate) · up; gate and up [..., m]."""
    few = gate.numel() <= FEW_ELEMENTS
    return (reference.act_mul if few else act_mul)(gate, up, activation)


def mlp(x: Tensor, layers: Sequence[Sequence[Tensor]], activation: str) -> Tensor:
    """y [..., k] = down(act(gate(x)) · up(x)); each layer is (W,), (A, B) or (A, C, permutation).

    Two layers are gate and up, stacked, and down.
    """
    *inner, down = layers
    gate, up = [_layer(x, layer) for layer in inner] if len(inner) == 2 else _layer(x, *inner).chunk(2, -1)
    return _layer(gated(gate, up, activation), down)


def _layer(x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    return (F.linear, linear, pivoted)[len(tensors) - 1](x, *tensors)
