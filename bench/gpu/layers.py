"""Random layers in bf16 on the device measured, and what the library makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.job import WrongResult
from bench.gpu.sizes import ranks

TOLERANCE = 2e-2
"""Largest relative Frobenius distance of an operator's result to the library's: several roundings to bf16."""


@dataclass(frozen=True)
class Layers:
    """Makes inputs and weights, scaled so that results keep their size."""

    device: torch.device
    multiple: int

    def random(self, *sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, device=self.device, dtype=torch.bfloat16)).mul_(scale)

    def dense(self, m: int, n: int) -> tuple[Tensor]:
        """(W [m, n],)."""
        return (self.random(m, n, scale=n**-0.5),)

    def pair(self, m: int, n: int) -> tuple[Tensor, Tensor]:
        """(A [r, n], B [m, r])."""
        r, _ = ranks(m, n, self.multiple)
        return self.random(r, n, scale=n**-0.5), self.random(m, r, scale=r**-0.5)

    def pivoted(self, m: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """(A [r, n], C [m - r, r], permutation [m] of two halves that ascend, as pruning makes it)."""
        _, r = ranks(m, n, self.multiple)
        # A tensor of inference mode counts no changes, so that nothing is remembered of it. A model's buffer is none.
        with torch.inference_mode(False):
            order = torch.randperm(m, device=self.device)
            permutation = torch.cat([order[:r].sort().values, order[r:].sort().values])
        return self.random(r, n, scale=n**-0.5), self.random(m - r, r, scale=r**-0.5), permutation


def two(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """A pair as two products of the library."""
    return F.linear(F.linear(x, A), B)


def pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor) -> Tensor:
    """A pivoted pair as products of the library and a gather."""
    z = F.linear(x, A)
    return torch.cat([z, F.linear(z, C)], -1)[..., torch.argsort(permutation)]


def check(
    name: str, ours: Tensor | Sequence[Tensor], theirs: Tensor | Sequence[Tensor], tolerance: float = TOLERANCE
) -> None:
    """WrongResult if ours is not theirs up to rounding."""
    for one, other in zip(*((t,) if isinstance(t, Tensor) else t for t in (ours, theirs)), strict=True):
        error = ((one.float() - other.float()).norm() / other.float().norm()).item()
        if not error <= tolerance:
            raise WrongResult(f"{name}: the relative error of {list(one.shape)} is {error:.1e}")
