"""Putting masks on a model, permanently or for a while. Its modules are not replaced."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sieve.compression.masks.tied import check_untied
from sieve.models.matrix import DENSE

if TYPE_CHECKING:
    from sieve.compression.masks.masks import Masks


def mask_(model: nn.Module, masks: "Masks", plan: Mapping[str, int | str]) -> dict[str, float]:
    """Replace dense weights by masked ones, as the plan says; the masks can be used again.

    Returns: kept fraction of each matrix that was masked.
    """
    ranks = {name: rank for name, rank in plan.items() if rank != DENSE}
    check_untied(model, ranks)
    for name, rank in ranks.items():
        _set(model.get_submodule(name), masks[name].at(rank))
    return {name: rank / masks[name].weight.shape[1] for name, rank in ranks.items()}


class ElasticWeights:
    """A dense model that runs any plan of its masks: setting one changes the weights. Made by `masked`."""

    def __init__(self, model: nn.Module, masks: "Masks"):
        self._layers = {name: model.get_submodule(name) for name in masks}
        self._dense = {name: layer.weight.data for name, layer in self._layers.items()}
        self._masks, self._now = masks, dict.fromkeys(masks, DENSE)

    def set_plan(self, plan: Mapping[str, int | str]) -> None:
        for name, layer in self._layers.items():
            rank = plan.get(name, DENSE)
            if rank == self._now[name]:
                continue
            if rank == DENSE:
                layer.weight.data = self._dense[name]
            else:
                _set(layer, self._masks[name].at(rank))
            self._now[name] = rank


@contextmanager
def masked(model: nn.Module, masks: "Masks") -> Iterator[ElasticWeights]:
    """Within the block the model runs whatever plan was last set; afterwards it is the dense model again."""
    check_untied(model, masks)
    elastic = ElasticWeights(model, masks)
    try:
        yield elastic
    finally:
        elastic.set_plan({})


def _set(layer: nn.Module, W: torch.Tensor) -> None:
    """Set W [m, n] as the layer's weight; the old tensor is not changed."""
    layer.weight.data = W.T.contiguous() if isinstance(layer, Conv1D) else W.contiguous()
