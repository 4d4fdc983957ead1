"""Compiled CPU path of the gated layer: gate and up are combined in cache, for inputs that `dispatch` accepts."""

from collections.abc import Callable, Sequence
from itertools import chain

from torch import Tensor

from sieve_kernels.core.plans import Plans
from sieve_kernels.lowrank.cpp_backend import Layer, LayersCall

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}  # as in activations.h
_STACKED = 16  # added where one layer is gate and up


def _swiglu(
    x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str
) -> Callable[..., Tensor]:
    layers = [(A, None, B, None, None, None) for A, B in ((A_gate, B_gate), (A_up, B_up))]
    call = LayersCall(x, layers, outputs=[0], activation=_ACTIVATIONS[activation])
    return lambda *arguments: call(*arguments[:-1])[0]


swiglu = Plans(_swiglu)
"""y [..., m] = act(gate) · up; x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q]."""


def _mlp(x: Tensor, layers: Sequence[Sequence[Tensor]], activation: str) -> Callable[..., Tensor]:
    number = _ACTIVATIONS[activation] + (_STACKED if len(layers) == 2 else 0)
    call = LayersCall(x, list(map(_layer, layers)), outputs=[len(layers) - 1], activation=number)
    return lambda x, layers, _: call(x, *chain.from_iterable(layers))[0]


mlp = Plans(_mlp)
"""y [..., k] = down(act(gate(x)) · up(x)); each layer is (W,), (A, B) or (A, C, permutation). Two layers are gate and
up, stacked, and down. h itself stays in cache."""


def _layer(layer: Sequence[Tensor]) -> Layer:
    if len(layer) == 1:
        return None, None, layer[0], None, None, None
    A, B, *permutation = layer
    return A, None, B, None, None, permutation[0] if permutation else None
