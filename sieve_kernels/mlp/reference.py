"""Definition in plain torch: the oracle of the tests, and the formula to read first.

T tokens, n inputs, m outputs, ranks r and q.
"""

from collections.abc import Sequence

from torch import Tensor

from sieve_kernels.lowrank.reference import dense, linear, pivoted
from sieve_kernels.pointwise.reference import ACTIVATIONS


def swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str = "silu") -> Tensor:
    """act(x A_gateᵀ B_gateᵀ) · (x A_upᵀ B_upᵀ); x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q]."""
    return ACTIVATIONS[activation](linear(x, A_gate, B_gate)) * linear(x, A_up, B_up)


def mlp(x: Tensor, layers: Sequence[Sequence[Tensor]], activation: str = "silu") -> Tensor:
    """down(act(gate(x)) · up(x)); gate, up and down are (W,), (A, B) or (A, C, permutation) → [..., k].

    Two layers are gate and up, stacked, and down.
    """
    *inner, down = layers
    gate, up = [layer(x, one) for one in inner] if len(inner) == 2 else layer(x, *inner).chunk(2, -1)
    return layer(ACTIVATIONS[activation](gate) * up, down)


def layer(x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """x Wᵀ, (x Aᵀ) Bᵀ, or the pivoted pair (A, C, permutation), by the number of tensors."""
    return (dense, linear, pivoted)[len(tensors) - 1](x, *tensors)


def width(tensors: Sequence[Tensor]) -> int:
    """How many outputs such a layer has."""
    return tensors[-1].shape[0]
