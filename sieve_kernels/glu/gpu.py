"""GPU path of gated layers for many rows: library products, then gate and up meet in one pass over both.

A pivoted layer's columns are put in order where they are read anyway: in that pass, at no cost.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.arguments import as_rows
from sieve_kernels.glu.reference import width
from sieve_kernels.lowrank.cpu import linear
from sieve_kernels.lowrank.gpu import halves, pivoted
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.pointwise.columns import act_mul


def swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Tensor:
    """y [..., m] = act(gate) · up; x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q]."""
    rows = as_rows(x)
    gate, up = linear(rows, A_gate, B_gate, None), linear(rows, A_up, B_up, None)
    return act_mul(gate, up, activation, out=gate).view(*x.shape[:-1], B_gate.shape[0])


def mlp(x: Tensor, layers: Sequence[Sequence[Tensor]], activation: str) -> Tensor:
    """y [..., k] = down(act(gate(x)) · up(x)); each layer is (W,), (A, B) or (A, C, permutation).

    Two layers are gate and up, stacked, and down.
    """
    *inner, down = layers
    rows = as_rows(x)
    if len(inner) == 2:
        (gate, gate_index), (up, up_index) = (_unordered(rows, layer) for layer in inner)
    else:
        gate, gate_index = _unordered(rows, inner[0])
        up, up_index = gate, None
        if gate_index is None:
            gate, up = gate.chunk(2, 1)
        else:
            gate_index, up_index = gate_index.chunk(2)
    y = _ordered(act_mul(gate, up, activation, gate_index, up_index), down)
    return y.view(*x.shape[:-1], width(down))


def _unordered(x: Tensor, layer: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Outputs of a layer, and which of them each of y is, None where they are in order; x [T, n]."""
    if len(layer) < 3:
        return _ordered(x, layer), None
    A, C, permutation = layer
    return halves(x, A, C), inverse(permutation)


def _ordered(x: Tensor, layer: Sequence[Tensor]) -> Tensor:
    """Outputs of a layer; x [T, n]."""
    return (F.linear, linear, pivoted)[len(layer) - 1](x, *layer, *([] if len(layer) == 1 else [None]))
