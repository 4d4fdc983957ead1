"""One part of a layer as this rank computes it: which rows of a stored pair, and the products that make them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Part:
    """What a part of a layer reads of z = A x and makes of it.

    rank: r, of which z has so many numbers here; 0 for a dense part, which reads x.
    weight: of the second product [k, r], or the dense weight [m, n].
    index: [m] int64, where in [z, weight z] each output is; None where the outputs are weight z.
    bias: [m] or None.
    """

    rank: int
    weight: torch.Tensor
    index: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        """x [..., n], z [..., r] → [..., m]."""
        if z is None:
            y = nn.functional.linear(x, self.weight)
        elif self.index is None:
            y = nn.functional.linear(z, self.weight)
        else:
            y = torch.cat([z, nn.functional.linear(z, self.weight)], -1).index_select(-1, self.index)
        return y if self.bias is None else y + self.bias


def pivoted_rows(C: torch.Tensor, permutation: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a pivoted pair the rows of C that some outputs need, and where in [z, C z] these are.

    Args:
        C: [m - r, r]. permutation: [m], where each of [z, C z] goes. rows: the outputs, k of them.

    Returns: C [at most k, r], index [k] int64.
    """
    rank = C.shape[1]
    inverse = torch.argsort(permutation)[rows]
    of_z = inverse < rank
    index = torch.where(of_z, inverse, rank + torch.cumsum(~of_z, 0) - 1)
    return C[inverse[~of_z] - rank].contiguous(), index


def rows_of_rank(total: int, here: int, shard: int) -> torch.Tensor:
    """The outputs of a part that a rank computes: the `shard`-th `here` of `total`.

    Raises: ValueError where there are not so many, as where the ranks do not divide the outputs.
    """
    if (shard + 1) * here > total:
        raise ValueError(f"{total} outputs cannot be split into parts of {here}: choose another tensor-parallel size")
    return torch.arange(shard * here, (shard + 1) * here)
