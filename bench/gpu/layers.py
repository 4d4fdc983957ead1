"""Random layers in bf16 on the measured device, and the same layers by library products."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.job import WrongResult
from bench.gpu.sizes import ranks

TOLERANCE = 2e-2
"""Tolerance of an operator's result, as the relative Frobenius distance to the library's: a few roundings to bf16."""


@dataclass(frozen=True)
class Layers:
    """Makes inputs and weights, scaled so that outputs are as large as inputs."""

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
        # Tensors of inference mode have no version counter, so operators would cache nothing for them. The buffers of
        # a model are normal tensors.
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
    """Raise WrongResult unless our result equals the library's up to rounding."""
    for one, other in zip(*((t,) if isinstance(t, Tensor) else t for t in (ours, theirs)), strict=True):
        error = ((one.float() - other.float()).norm() / other.float().norm()).item()
        if not error <= tolerance:
            raise WrongResult(f"{name}: the relative error of {list(one.shape)} is {error:.1e}")
