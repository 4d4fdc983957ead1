"""Definition in plain torch: the oracle of the tests, and the formula to read first.

T tokens, n inputs, m outputs, ranks r and q.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.lowrank.reference import linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
"""By the names that users give."""


def swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str = "silu") -> Tensor:
    """act(x A_gateᵀ B_gateᵀ) · (x A_upᵀ B_upᵀ); x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q]."""
    return ACTIVATIONS[activation](linear(x, A_gate, B_gate)) * linear(x, A_up, B_up)
