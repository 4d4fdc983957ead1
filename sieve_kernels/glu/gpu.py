"""GPU path of gated layers for many rows: library products, then gate and up meet in one pass over both.

A pivoted layer's columns are put in order where they are read anyway: in that pass, at no cost.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.arguments import as_rows
from sieve_kernels.core.streams import side_by_side
from sieve_kernels.glu.reference import width
from sieve_kernels.lowrank.cpu import linear
from sieve_kernels.lowrank.gpu import halves_, outputs, pair_, pivoted
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.pointwise.columns import act_mul


def swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Tensor:
    """y [..., m] = act(gate) · up; x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q]."""
    gate, up = _unordered(as_rows(x), ((A_gate, B_gate), (A_up, B_up)))
    return act_mul(gate, up, activation, None, None, gate).view(*x.shape[:-1], B_gate.shape[0])


def mlp(x: Tensor, layers: Sequence[Sequence[Tensor]], activation: str) -> Tensor:
    """y [..., k] = down(act(gate(x)) · up(x)); each layer is (W,), (A, B) or (A, C, permutation).

    Two layers are gate and up, stacked, and down.
    """
    *inner, down = layers
    found = _unordered(as_rows(x), inner)
    indices = [inverse(layer[2]) if len(layer) == 3 else None for layer in inner]
    if len(inner) == 1:
        if indices[0] is None:
            found = found[0].chunk(2, 1)
            indices = [None, None]
        else:
            found, indices = found * 2, indices[0].chunk(2)
    h = act_mul(*found, activation, *indices)
    y = (F.linear, linear, pivoted)[len(down) - 1](h, *down, *(() if len(down) == 1 else (None,)))
    return y.view(*x.shape[:-1], width(down))


def _unordered(x: Tensor, layers: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Outputs of layers of one input, a pivoted pair's as `halves_` leaves them; x [T, n]."""
    ys = [outputs(x, width(layer)) for layer in layers]
    works = (dense_, pair_, halves_)
    side_by_side(
        [partial(works[len(layer) - 1], y, x, *layer[:2]) for y, layer in zip(ys, layers, strict=True)],
        x.shape[0],
        x.device,
    )
    return ys


def dense_(out: Tensor, x: Tensor, W: Tensor) -> None:
    """out [T, m] = x Wᵀ; x [T, n], W [m, n]."""
    torch.mm(x, W.T, out=out)
