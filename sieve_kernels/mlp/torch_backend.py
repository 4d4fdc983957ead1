"""CPU path of the gated layer: library products, blocks of tokens, and activations that work in place."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.wide_products import wide_products
from sieve_kernels.lowrank.torch_backend import group_backward, token_blocks
from sieve_kernels.pointwise.reference import ACTIVATION_GRADIENTS

_aten = torch.ops.aten

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": _aten.silu_,
    "gelu": _aten.gelu_,
    "gelu_tanh": partial(_aten.gelu_, approximate="tanh"),
    "relu": _aten.relu_,
}


@wide_products
def swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Tensor:
    """y [..., m] = act(gate) · up; x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q].

    The gate becomes the output in place; `up` is never longer than a block of tokens.
    """
    rows = as_rows(x)
    blocks = token_blocks(rows.shape[0])
    if len(blocks) == 1:
        return _activated(F.linear(F.linear(x, A_gate), B_gate), x, A_up, B_up, activation)
    y = x.new_empty((rows.shape[0], B_gate.shape[0]))
    for block in blocks:
        torch.mm(rows[block] @ A_gate.T, B_gate.T, out=y[block])
        _activated(y[block], rows[block], A_up, B_up, activation)
    return y.reshape(*x.shape[:-1], B_gate.shape[0])


def _activated(gate, x, A_up, B_up, activation):
    """act(gate) · up in the place of gate."""
    return IN_PLACE[activation](gate).mul_(F.linear(F.linear(x, A_up), B_up))


@wide_products
def swiglu_backward(
    grad: Tensor,
    x: Tensor,
    A_gate: Tensor,
    B_gate: Tensor,
    A_up: Tensor,
    B_up: Tensor,
    activation: str,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x, A_gate, A_up, B_gate, B_up in this order, those that are needed; grad [..., m].

    Recomputes gate and up.
    """
    rows, tokens = as_rows(grad), as_rows(x)
    gate = (tokens @ A_gate.T) @ B_gate.T
    up = (tokens @ A_up.T) @ B_up.T
    d_gate = ACTIVATION_GRADIENTS[activation](up.mul_(rows), gate)
    d_up = IN_PLACE[activation](gate).mul_(rows)
    return group_backward([d_gate, d_up], x, [A_gate, A_up], [B_gate, B_up], needed)
