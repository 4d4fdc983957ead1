"""Epilogues of library products (act_mul, gather_columns, join_columns), by Triton or, without it, by torch."""

from torch import Tensor

from sieve_kernels.pointwise import reference
from sieve_kernels.pointwise.reference import ACTIVATIONS

try:
    from sieve_kernels.pointwise.triton_columns import act_mul, gather_columns, join_columns
except ModuleNotFoundError:

    def act_mul(
        gate: Tensor,
        up: Tensor,
        activation: str,
        gate_index: Tensor | None = None,
        up_index: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """h [T, m], h[t, j] = act(gate[t, gate_index[j]]) · up[t, up_index[j]]."""
        gate, up = (
            t if index is None else t.index_select(1, index) for t, index in ((gate, gate_index), (up, up_index))
        )
        h = ACTIVATIONS[activation](gate).mul_(up)
        return h if out is None else out.copy_(h)

    def gather_columns(x: Tensor, index: Tensor, bias: Tensor | None = None) -> Tensor:
        """y [T, m], y[t, j] = x[t, index[j]] + bias[j]; x [T, n], index [m] int32 or int64, bias [m]."""
        y = x.index_select(1, index)
        return y if bias is None else y.add_(bias)

    def join_columns(
        z: Tensor, c: Tensor, index: Tensor, bias: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """y [T, m], y[t, j] = [z, c][t, index[j]] + bias[j]; z [T, r], c [T, m - r], index [m], bias [m]."""
        y = reference.join_columns(z, c, index, bias)
        return y if out is None else out.copy_(y)
