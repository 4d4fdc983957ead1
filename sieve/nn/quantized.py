"""The low-rank pair whose factors are integers of 8 or 4 bits with scales."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sieve_kernels import dequantize_rows, lowrank_linear_quantized, quantize_rows

_SCALES = ("A_scale", "B_scale")


class QuantizedLinear(nn.Module):
    """y = (x Aᵀ) Bᵀ + bias with factors as `sieve_kernels.quantize_rows` stores them; for inference.

    Gradients flow to x and bias. A cast, as by `model.half()`, leaves integers and scales as they are.

    Args: in_features n, out_features m, rank r; bits 8 or 4. Buffers, all saved: A_q [r, n] and B_q [m, r] int8, with
        A_scale [r] and B_scale [m] float32; for 4 bits uint8 [r, ⌈n/2⌉] and [m, ⌈r/2⌉], with scales [r, ⌈n/64⌉] and
        [m, ⌈r/64⌉]. bias [m] is a parameter.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bits: int, bias: bool = True, device=None, dtype=None
    ):
        super().__init__()
        self.in_features, self.out_features, self.rank, self.bits = in_features, out_features, rank, bits
        for name, rows, columns in (("A", rank, in_features), ("B", out_features, rank)):
            # Of a matrix on the meta device come shapes and dtypes, and no work.
            q, scale = quantize_rows(torch.empty(rows, columns, device="meta"), bits)
            self.register_buffer(f"{name}_q", torch.zeros(q.shape, dtype=q.dtype, device=device))
            self.register_buffer(f"{name}_scale", torch.ones(scale.shape, dtype=scale.dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., n] → y [..., m]."""
        return lowrank_linear_quantized(x, self.A_q, self.A_scale, self.B_q, self.B_scale, self.bias)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A [r, n] and B [m, r] that are multiplied by, float32."""
        return (
            dequantize_rows(self.A_q, self.A_scale, self.in_features, torch.float32),
            dequantize_rows(self.B_q, self.B_scale, self.rank, torch.float32),
        )

    @property
    def weight(self) -> torch.Tensor:
        """B A [m, n] float32, multiplied anew at each reading, as that of `LowRankLinear`."""
        A, B = self.factors()
        return B @ A

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """What `to`, `half`, `cuda` and others do: to another device, and not to another dtype."""
        before = {name: self._buffers[name] for name in _SCALES}
        super()._apply(fn, recurse)
        for name, scale in before.items():
            if self._buffers[name].dtype != scale.dtype:
                self._buffers[name] = scale.to(self._buffers[name].device)
        return self

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
        return f"{sizes}, bits={self.bits}"
