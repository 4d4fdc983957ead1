"""Pairs as a pruned model stores them: for good, or for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.compression.low_rank.pair import FactorPair
from sieve.models.linears import layer_in, replace, weight_of
from sieve.models.prunable_model import PrunableModel
from sieve.nn.elastic_linear import ElasticLinear, centred_bias
from sieve.nn.formats.pivoted_pair import pair_format


def put_pairs_(model: nn.Module, factors: Mapping[str, FactorPair], ranks: Mapping[str, int], pivot: bool) -> None:
    """Replace the dense layers that `ranks` names by their pairs, in place."""
    for name, rank in ranks.items():
        replace(model, name, stored_layer(model.get_submodule(name), factors[name], rank, pivot))


@contextmanager
def with_pairs(
    model: PreTrainedModel | PrunableModel, factors: Mapping[str, FactorPair], ranks: Mapping[str, int], pivot: bool
) -> Iterator[None]:
    """Within the block the model has the weights that `put_pairs_` would give it; afterwards its own layers again."""
    model = PrunableModel.of(model)
    layers = {}
    for name, pair in factors.items():
        layer = model.layer(name)
        dense = layer.dense if isinstance(layer, ElasticLinear) else layer
        layers[name] = stored_layer(dense, pair, ranks[name], pivot) if name in ranks else dense
    with model.replaced(layers):
        yield


@torch.no_grad()
def stored_layer(layer: nn.Module, factors: FactorPair, rank: int, pivot: bool) -> nn.Module:
    """The pair that takes the place of a dense layer."""
    shift = factors.shift(rank)
    bias = layer.bias if shift is None else centred_bias(layer.bias, shift, weight_of(layer).dtype)
    format = pair_format(pivot)(rank, bias=True if shift is not None else None)
    pair = layer_in(format, layer)
    format.fill_(pair, *factors.slice(rank), bias, factors.gram, factors.energy)
    pair.train(layer.training)
    return pair.requires_grad_(layer.weight.requires_grad)
