"""GPU path of gated layers for many rows: library products, then gate and up meet in one pass over both.

A pivoted layer's columns are put in order where they are read anyway: in that pass, at no cost.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.arguments import as_rows
from sieve_kernels.core.plans import Plans, once
from sieve_kernels.core.streams import overlaps, side_by_side
from sieve_kernels.glu.reference import width
from sieve_kernels.lowrank.cpu import linear, product
from sieve_kernels.lowrank.gpu import halves_, outputs, pivoted
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.pointwise.columns import act_mul

Layer = Sequence[Tensor]


def _prepare_swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Callable:
    find, shape, join = _unordered(x, ((A_gate, B_gate), (A_up, B_up))), (*x.shape[:-1], len(B_gate)), once(act_mul)

    def run(x, A_gate, B_gate, A_up, B_up, activation):
        gate, up = find(as_rows(x), ((A_gate, B_gate), (A_up, B_up)))
        return join(gate, up, activation, None, None, gate).view(shape)

    return run


swiglu = Plans(_prepare_swiglu)
"""y [..., m] = act(gate) · up of x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q] and the name of
an activation."""


def _prepare_mlp(x: Tensor, layers: Sequence[Layer], activation: str) -> Callable:
    *inner, down = layers
    find, shape, join = _unordered(x, inner), (*x.shape[:-1], width(down)), once(act_mul)
    last = (F.linear, linear, once(pivoted))[len(down) - 1]
    last_arguments = () if len(down) == 1 else (None,)

    def run(x, layers, activation):
        *inner, down = layers
        found = find(as_rows(x), inner)
        indices = [inverse(layer[2]) if len(layer) == 3 else None for layer in inner]
        if len(inner) == 1:
            if indices[0] is None:
                found, indices = found[0].chunk(2, 1), (None, None)
            else:
                found, indices = found * 2, indices[0].chunk(2)
        h = join(*found, activation, *indices)
        return last(h, *down, *last_arguments).view(shape)

    return run


mlp = Plans(_prepare_mlp)
"""y [..., k] = down(act(gate(x)) · up(x)) of x [..., n], layers and the name of an activation; each layer is (W,),
(A, B) or (A, C, permutation). Two layers are gate and up, stacked, and down."""


def _unordered(x: Tensor, layers: Sequence[Layer]) -> Callable[[Tensor, Sequence[Layer]], list[Tensor]]:
    """A function of x [T, n] and layers of it to their outputs, a pivoted pair's as `halves_` leaves them."""
    rows, device, widths = x.numel() // max(1, x.shape[-1]), x.device, [width(layer) for layer in layers]
    works = [(_dense, _pair, _halves)[len(layer) - 1] for layer in layers]

    def find(x, layers):
        overlapping = len(works) > 1 and overlaps(rows, device)
        # Outputs belong to the stream that goes on with them.
        outs = [outputs(x, m) if overlapping else None for m in widths]
        calls = [partial(work, x, *layer[:2], out) for work, layer, out in zip(works, layers, outs, strict=True)]
        return side_by_side(calls, rows, device) if overlapping else [call() for call in calls]

    return find


def _dense(x: Tensor, W: Tensor, out: Tensor | None) -> Tensor:
    """x Wᵀ [T, m], in `out` if given; x [T, n], W [m, n]."""
    return product(x, W, None, out)


def _pair(x: Tensor, A: Tensor, B: Tensor, out: Tensor | None) -> Tensor:
    """x Aᵀ Bᵀ [T, m], in `out` if given; x [T, n], A [r, n], B [m, r]."""
    return product(F.linear(x, A), B, None, out)


def _halves(x: Tensor, A: Tensor, C: Tensor, out: Tensor | None) -> Tensor:
    """[z, z Cᵀ] [T, m], z = x Aᵀ, in `out` if given; x [T, n], A [r, n], C [m - r, r]."""
    return halves_(outputs(x, len(A) + len(C)) if out is None else out, x, A, C)
