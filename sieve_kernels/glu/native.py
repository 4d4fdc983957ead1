"""Compiled CPU path of the gated layer: gate and up meet in cache, for inputs that `dispatch` finds fit."""

from torch import Tensor

from sieve_kernels.lowrank.native import rows_in_one_piece, run

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}  # as in activations.h


def swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Tensor:
    """y [..., m] = act(gate) · up; x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q]."""
    y = x.new_empty((*x.shape[:-1], B_gate.shape[0]))
    pairs = [
        (rows_in_one_piece(A), None, rows_in_one_piece(B), None, None, None, y)
        for A, B in ((A_gate, B_gate), (A_up, B_up))
    ]
    run(x, pairs, _ACTIVATIONS[activation])
    return y
