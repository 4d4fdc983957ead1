"""Gated MLPs of pairs with the rows of `lowrank.triton.grouped`: gate and up in common launches, tiles copied by TMA.

Not measured on a GPU yet: used only if requested or measured as fastest.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from sieve_kernels.common import tiles
from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.plans import Plans, once
from sieve_kernels.lowrank.triton import grouped
from sieve_kernels.mlp import torch_backend_gpu
from sieve_kernels.pointwise.columns import act_mul

Layer = Sequence[Tensor]


def _prepare_mlp(x: Tensor, layers: Sequence[Layer], activation: str) -> Callable[..., Tensor]:
    """Three launches for gate and up, one that combines them, and two or three for y."""
    if not _serves(x, layers):
        return torch_backend_gpu.mlp.prepare(x, layers, activation)
    gate, up, down = layers
    h = x.new_empty((*x.shape[:-1], gate[1].shape[0]))
    inner = grouped.prepare(x, [gate[0], up[0]], [gate[1], up[1]], None)
    last = grouped.prepare(h, [down[0]], [down[1]], None)
    join = once(act_mul)

    def run(x, layers, activation):
        gate, up, down = layers
        gates, ups = inner(x, [gate[0], up[0]], [gate[1], up[1]], None)
        h = join(gates, ups, activation, None, None, gates)
        return last(h, [down[0]], [down[1]], None)[0]

    return run


def _serves(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether all three are pairs that tiles can be copied of."""
    if len(layers) != 3 or any(len(layer) != 2 for layer in layers):
        return False
    factors = [factor for layer in layers for factor in layer]
    whole = all(B.shape[0] % 8 == 0 for _, B in layers)
    return whole and all(map(tiles.has_descriptor, (as_rows(x), *factors)))


mlp = Plans(_prepare_mlp)
"""As `torch_backend_gpu.mlp` has it, which serves what these kernels are not for."""
