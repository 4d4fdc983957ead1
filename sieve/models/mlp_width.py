"""The width of an MLP as one thing that a plan decides: how many of its hidden channels stay (DESIGN 2.12)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sieve.models.matrix import DENSE, Matrix
from sieve.nn.families import MLP_LAYERS

if TYPE_CHECKING:
    import torch
    from torch import nn

Writers = tuple[tuple[str, int], ...]
"""Dotted names of the matrices that write the channels of an MLP, and how many parts of each do (gate and up in one
matrix are two)."""


@dataclass(frozen=True)
class MlpWidth(Matrix):
    """The matrix of an MLP that reads its n hidden channels; its "rank" is how many of them stay.

    writers: the matrices that write the channels: they lose the same ones.
    per_channel: parameters that go with one channel, in all of these matrices.
    """

    writers: Writers = ()
    per_channel: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return (*(name for name, _ in self.writers), self.name)

    @property
    def parameters(self) -> int:
        return self.n * self.per_channel

    @property
    def limit(self) -> int:
        return self.n

    @property
    def max_rank(self) -> int:
        return self.n - 1

    def rank_at(self, kept: float, multiple: int = 1) -> int | Literal["dense"]:
        channels = max(math.ceil(round(kept * self.n / multiple, 6)), 1) * multiple
        return channels if channels <= self.max_rank else DENSE

    def size(self, rank: int | Literal["dense"]) -> int:
        return (self.n if rank == DENSE else rank) * self.per_channel

    def stand_in(
        self, rank: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> nn.Module:
        """One product with as many numbers as all of the MLP's at this width."""
        from sieve.nn.narrow import NarrowLinear  # the command line reads this file before torch

        return NarrowLinear(rank, self.per_channel, False, device=device, dtype=dtype)

    def nbytes(self, rank: int | Literal["dense"], itemsize: int) -> int:
        return self.size(rank) * itemsize


def with_widths(matrices: Mapping[str, Matrix], writers: Mapping[str, Writers]) -> dict[str, Matrix]:
    """`matrices` with the width of each MLP in the place of its matrices.

    writers: of each matrix that reads the channels of an MLP (`PrunableModel.channel_writers`).
    """
    gone = {name for found in writers.values() for name, _ in found}
    result = {}
    for name, matrix in matrices.items():
        if name in writers:
            numbers = matrix.m + sum(parts * matrices[writer].n for writer, parts in writers[name])
            result[name] = MlpWidth(name, matrix.m, matrix.n, matrix.block, matrix.pivoted, writers[name], numbers)
        elif name not in gone:
            result[name] = matrix
    return result


def find_mlps(block: nn.Module, prefix: str) -> dict[str, Writers]:
    """Name of each matrix in a decoder block that reads the channels of an MLP of a known kind → what writes them."""
    found = {}
    for name, _ in block.named_modules():
        parent, _, last = name.rpartition(".")
        if last not in MLP_LAYERS:
            continue
        names, parts = MLP_LAYERS[last]
        siblings = dict((block.get_submodule(parent) if parent else block).named_children())
        path = f"{prefix}.{parent}" if parent else prefix
        writers = tuple((f"{path}.{other}", parts.get(other, 1)) for other in names if other in siblings)
        if writers:
            found[f"{prefix}.{name}"] = writers
    return found
