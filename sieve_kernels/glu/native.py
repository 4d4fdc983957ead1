"""Compiled CPU path of the gated layer: gate and up meet in cache, for inputs that `dispatch` finds fit."""

from collections.abc import Sequence

from torch import Tensor

from sieve_kernels.glu.reference import width
from sieve_kernels.lowrank.native import Layer, rows_in_one_piece, run

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}  # as in activations.h
_STACKED = 16  # added where one layer is gate and up


def swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Tensor:
    """y [..., m] = act(gate) · up; x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q]."""
    y = x.new_empty((*x.shape[:-1], B_gate.shape[0]))
    pairs = [
        (rows_in_one_piece(A), None, rows_in_one_piece(B), None, None, None, y)
        for A, B in ((A_gate, B_gate), (A_up, B_up))
    ]
    run(x, pairs, _ACTIVATIONS[activation])
    return y


def mlp(x: Tensor, layers: Sequence[Sequence[Tensor]], activation: str) -> Tensor:
    """y [..., k] = down(act(gate(x)) · up(x)); each layer is (W,), (A, B) or (A, C, permutation).

    Two layers are gate and up, stacked, and down.
    """
    *inner, down = layers
    y = x.new_empty((*x.shape[:-1], width(down)))
    between = x.new_empty((0, width(inner[0])))  # only its width is looked at: h itself stays in cache
    parts = [*(_parts(layer, between) for layer in inner), _parts(down, y)]
    run(x, parts, _ACTIVATIONS[activation] + (_STACKED if len(inner) == 1 else 0))
    return y


def _parts(layer: Sequence[Tensor], out: Tensor) -> Layer:
    if len(layer) == 1:
        return None, None, rows_in_one_piece(layer[0]), None, None, None, out
    A, B, *permutation = layer
    order = permutation[0].contiguous() if permutation else None
    return rows_in_one_piece(A), None, rows_in_one_piece(B), None, None, order, out
