"""A dense model and what Sieve knows of it: found out once, and handed from stage to stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sieve.models.decoder import decoder_blocks, run_decoder
from sieve.models.linears import left_dense, prunable, replace, weight_of
from sieve.models.matrix import Matrix
from sieve.models.mlp_width import Writers, find_mlps, with_widths
from sieve.models.shared_inputs import group_layers_by_input
from sieve.nn.families import Family, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PrunableModel:
    """A dense transformers model, its prunable linear layers and its decoder blocks.

    Functions of Sieve take a plain model too, and make one of these of it. What is known is of the layers that the
    model had when it was asked first: ask before layers are replaced for a while, and make a new one after a step that
    replaces them for good.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model

    @classmethod
    def of(cls, model: PreTrainedModel | PrunableModel) -> PrunableModel:
        """The model itself, or one made of a plain model."""
        return model if isinstance(model, cls) else cls(model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def family(self) -> Family | None:
        """The model's row in `sieve.nn.families`; None: it runs as transformers runs it."""
        return family_of(self.model)

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return decoder_blocks(self.model)[1]

    def matrices(self, pivoted: bool = False, widths: bool = False) -> dict[str, Matrix]:
        """The prunable matrices by name (`sieve.models.linears.prunable`).

        pivoted: how their pairs are stored. widths: the matrices of an MLP are one, its width (`MlpWidth`).
        """
        matrices = {name: dataclasses.replace(matrix, pivoted=pivoted) for name, matrix in self._linears.items()}
        return with_widths(matrices, self.channel_writers) if widths else matrices

    @cached_property
    def _linears(self) -> dict[str, Matrix]:
        return prunable(self.model)

    @cached_property
    def channel_writers(self) -> dict[str, Writers]:
        """Of each MLP that can lose channels: name of the matrix that reads them → the matrices that write them."""
        prefix, blocks = decoder_blocks(self.model)
        found = {}
        for index, block in enumerate(blocks):
            for reader, writers in find_mlps(block, f"{prefix}.{index}").items():
                names = [reader, *(name for name, _ in writers)]
                fits = all(name in self._linears for name in names) and all(
                    self._linears[name].m == parts * self._linears[reader].n for name, parts in writers
                )
                if fits:
                    found[reader] = writers
        return found

    @cached_property
    def left_dense(self) -> dict[str, str]:
        """What inside the blocks cannot be pruned: name of layer or parameter → why."""
        return left_dense(self.model)

    @cached_property
    def input_groups(self) -> list[list[str]]:
        """Names of the prunable matrices grouped by the input they read (q, k, v; gate, up), in order of execution."""
        return group_layers_by_input(self.model, list(self._linears))

    def layer(self, name: str) -> nn.Module:
        """The linear layer of a matrix, or what is in its place at the moment."""
        return self.model.get_submodule(name)

    def weight(self, name: str) -> torch.Tensor:
        """W [m, n] of a matrix."""
        return weight_of(self.layer(name))

    def replace(self, name: str, layer: nn.Module) -> None:
        """Put `layer` in the place of a matrix's layer."""
        replace(self.model, name, layer)

    @contextmanager
    def replaced(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        """Inside the block these layers are in the places of the model's own; afterwards its own are there again."""
        originals = {name: self.layer(name) for name in layers}
        try:
            for name, layer in layers.items():
                self.replace(name, layer)
            yield
        finally:
            for name, layer in originals.items():
                self.replace(name, layer)

    def run_decoder(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        """One forward pass without the output head; see `sieve.models.decoder.run_decoder`."""
        return run_decoder(self.model, ids, mask)
