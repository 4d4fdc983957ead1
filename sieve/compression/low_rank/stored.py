"""Pairs as a pruned model stores them: for good, or for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.low_rank.pivot import pivoted
from sieve.models.linears import low_rank, replace
from sieve.nn.elastic_linear import ElasticLinear, centred_bias


def put_pairs_(model: nn.Module, factors: Mapping[str, FactorPair], ranks: Mapping[str, int], pivot: bool) -> None:
    """Replace the dense layers that `ranks` names by their pairs, in place."""
    for name, rank in ranks.items():
        replace(model, name, stored_layer(model.get_submodule(name), factors[name], rank, pivot))


@contextmanager
def with_pairs(
    model: nn.Module, factors: Mapping[str, FactorPair], ranks: Mapping[str, int], pivot: bool
) -> Iterator[None]:
    """Within the block the model has the weights that `put_pairs_` would give it; afterwards its own layers again."""
    originals = {name: model.get_submodule(name) for name in factors}
    try:
        for name, layer in originals.items():
            dense = layer.dense if isinstance(layer, ElasticLinear) else layer
            replace(model, name, stored_layer(dense, factors[name], ranks[name], pivot) if name in ranks else dense)
        yield
    finally:
        for name, layer in originals.items():
            replace(model, name, layer)


@torch.no_grad()
def stored_layer(layer: nn.Module, factors: FactorPair, rank: int, pivot: bool) -> nn.Module:
    """The pair that takes the place of a dense layer."""
    shift = factors.shift(rank)
    pair = low_rank(layer, rank, pivoted=pivot, biased=shift is not None)
    if pivot:
        A, C, permutation = pivoted(factors, rank)
        pair.C.weight.copy_(C)
        pair.permutation.copy_(permutation)
        bias = pair.bias
    else:
        A, B = factors.slice(rank)
        pair.B.weight.copy_(B)
        bias = pair.B.bias
    pair.A.weight.copy_(A)
    if shift is not None:
        bias.copy_(centred_bias(layer.bias, shift, bias.dtype))
    elif bias is not None:
        bias.copy_(layer.bias)
    pair.train(layer.training)
    return pair.requires_grad_(layer.weight.requires_grad)
