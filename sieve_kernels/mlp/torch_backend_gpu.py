"""GPU path of gated layers for many rows: library products, then one pass that combines gate and up.

A pivoted layer's columns are reordered in that pass, which reads them anyway, at no cost.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.plans import Plans, once
from sieve_kernels.core.streams import either, side_by_side
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.lowrank.torch_backend import linear, product
from sieve_kernels.lowrank.torch_backend_gpu import halves_, outputs, pivoted, shaped
from sieve_kernels.mlp.reference import width
from sieve_kernels.pointwise.columns import act_mul

Layer = Sequence[Tensor]


def _prepare_swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Callable:
    inner, shape = ((A_gate, B_gate), (A_up, B_up)), (*x.shape[:-1], len(B_gate))

    def make(overlapping):
        find, join = _unordered(x, inner, overlapping), once(act_mul)

        def run(x, A_gate, B_gate, A_up, B_up, activation):
            gate, up = find(x, ((A_gate, B_gate), (A_up, B_up)))
            return shaped(join(gate, up, activation, None, None, gate), shape)

        return run

    return either(make, 2, _rows(x), x.device)


swiglu = Plans(_prepare_swiglu)
"""y [..., m] = act(gate) · up of x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q] and the name of
an activation."""


def _prepare_mlp(x: Tensor, layers: Sequence[Layer], activation: str) -> Callable:
    *inner, down = layers
    return either(partial(_mlp_run, x, inner, down), len(inner), _rows(x), x.device)


def _mlp_run(x: Tensor, inner: Sequence[Layer], down: Layer, overlapping: bool) -> Callable[..., Tensor]:
    """`_prepare_mlp`'s function, for gate and up in parallel or one after another."""
    find, shape, join = _unordered(x, inner, overlapping), (*x.shape[:-1], width(down)), once(act_mul)
    last = (F.linear, linear, once(pivoted))[len(down) - 1]
    last_arguments = () if len(down) == 1 else (None,)

    def run(x, layers, activation):
        *inner, down = layers
        found = find(x, inner)
        indices = [inverse(layer[2]) if len(layer) == 3 else None for layer in inner]
        if len(inner) == 1:
            if indices[0] is None:
                found, indices = found[0].chunk(2, -1), (None, None)
            else:
                found, indices = found * 2, indices[0].chunk(2)
        h = join(*found, activation, *indices)
        return shaped(last(h, *down, *last_arguments), shape)

    return run


mlp = Plans(_prepare_mlp)
"""y [..., k] = down(act(gate(x)) · up(x)) of x [..., n], layers and the name of an activation; each layer is (W,),
(A, B) or (A, C, permutation). Two layers are gate and up, stacked, and down."""


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _unordered(x: Tensor, layers: Sequence[Layer], overlapping: bool) -> Callable[..., Sequence[Tensor]]:
    """A function of x [..., n] and layers of it to their outputs, a pivoted pair's as `halves_` leaves them, [T, m]."""
    rows, device, widths = _rows(x), x.device, [width(layer) for layer in layers]
    works = [(_dense, _pair, _halves)[len(layer) - 1] for layer in layers]
    in_rows = overlapping or _halves in works

    def find(x, layers):
        x = as_rows(x) if in_rows else x
        # Allocate outputs on the stream that reads them next.
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
