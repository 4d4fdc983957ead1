"""The low-rank pair in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sieve.errors import InputError
from sieve.nn.formats.base import LowRankFormat
from sieve.nn.formats.pair import Pair
from sieve.nn.quantized import QuantizedLinear
from sieve.nn.scales import quantize_pair
from sieve.utils.messages import shorten

BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class QuantizedPair(LowRankFormat):
    """A_q, A_scale, B_q and B_scale, as `QuantizedLinear` describes them, and bias [m].

    bits: of an entry of A and B, 8 or 4.
    """

    name: ClassVar[str] = "quantized_pair"
    modules: ClassVar = (QuantizedLinear,)

    bits: int = 8

    numel, max_rank, rank_of = Pair.numel, Pair.max_rank, Pair.rank_of  # the numbers are as many, each takes less

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.bits) is not int or self.bits not in BITS.values():
            raise InputError(f"its bits must be 8 or 4, got {shorten(self.bits)}")

    @classmethod
    def summary(cls, layers: Sequence[QuantizedPair]) -> str:
        bits = " or ".join(str(one) for one in sorted({layer.bits for layer in layers}))
        return (
            f"{len(layers)} of its weight matrices are low-rank pairs in {bits} bits; `config.json` holds their ranks."
        )

    def nbytes(self, m: int, n: int, itemsize: int) -> int:
        """Of integers and float32 scales, whatever the dtype."""
        layer = self.module(m, n, bias=False, device="meta")
        return sum(tensor.nbytes for tensor in layer.buffers())

    @classmethod
    def of(cls, module: QuantizedLinear) -> QuantizedPair:
        return cls(module.rank, True if module.bias is not None else None, module.bits)

    def module(
        self, m: int, n: int, bias: bool, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> QuantizedLinear:
        return QuantizedLinear(n, m, self.rank, self.bits, bool(bias or self.bias), device=device, dtype=dtype)

    @torch.no_grad()
    def fill_(
        self,
        module: nn.Module,
        A: torch.Tensor,
        B: torch.Tensor,
        bias: torch.Tensor | None = None,
        gram: torch.Tensor | None = None,
        energy: torch.Tensor | None = None,
    ) -> None:
        stored = (module.A_q, module.A_scale, module.B_q, module.B_scale)
        for buffer, tensor in zip(stored, quantize_pair(A, B, self.bits, gram), strict=True):
            buffer.copy_(tensor)
        if bias is not None:
            module.bias.copy_(bias)

    def factors(self, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return *module.factors(), module.bias

    def check(self, module: nn.Module, name: str) -> str | None:
        for part in ("A_scale", "B_scale"):
            scale = module.get_buffer(part)
            if not (torch.isfinite(scale) & (scale > 0)).all():
                return f"{part} of {name} has a scale that is not positive"
        return None
