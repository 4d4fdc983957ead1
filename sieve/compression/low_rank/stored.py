"""Pairs as a pruned model stores them: for good, or for a while."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.structured.channel_pair import ChannelPair, narrow_reader, narrow_writer
from sieve.models.linears import layer_in, replace, weight_of
from sieve.models.prunable_model import PrunableModel
from sieve.nn.elastic_linear import ElasticLinear, centred_bias
from sieve.nn.formats.pivoted_pair import pair_format


def put_pairs_(model: nn.Module, factors: Mapping[str, FactorPair], ranks: Mapping[str, int], pivot: bool) -> None:
    """Replace the dense layers that `ranks` names by their pairs, in place."""
    for name, rank in ranks.items():
        for place, layer in _stored_layers(model.get_submodule, name, factors[name], rank, pivot).items():
            replace(model, place, layer)


@contextmanager
def with_pairs(
    model: PreTrainedModel | PrunableModel, factors: Mapping[str, FactorPair], ranks: Mapping[str, int], pivot: bool
) -> Iterator[None]:
    """Within the block the model has the weights that `put_pairs_` would give it; afterwards its own layers again."""
    model = PrunableModel.of(model)

    def dense(name: str) -> nn.Module:
        layer = model.layer(name)
        return layer.dense if isinstance(layer, ElasticLinear) else layer

    layers = {}
    for name, pair in factors.items():
        layers |= _stored_layers(dense, name, pair, ranks[name], pivot) if name in ranks else {name: dense(name)}
    with model.replaced(layers):
        yield


def _stored_layers(
    layer: Callable[[str], nn.Module], name: str, pair: FactorPair, rank: int, pivot: bool
) -> dict[str, nn.Module]:
    """What takes the places of the dense layers that the pair of `name` stands for. layer: name → the dense one."""
    if not isinstance(pair, ChannelPair):
        return {name: stored_layer(layer(name), pair, rank, pivot)}
    reader = layer(name)
    channels, before = pair.channels(rank), weight_of(reader).shape[1]
    writers = {other: narrow_writer(layer(other), channels, before, parts) for other, parts in pair.writers}
    return {**writers, name: narrow_reader(reader, pair, rank)}


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
