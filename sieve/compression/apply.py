"""A plan onto a model: for good (`apply_`), or for a while.

`applied` is what `apply_` stores; `sliced` turns quickly from plan to plan, for a search, up to rounding.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.checkpoint.folder import mark, mark_masked
from sieve.compression.low_rank.elastic import Slices, sliced_factors
from sieve.compression.low_rank.factors import FactorPair, Factors
from sieve.compression.low_rank.pivot import pivoted
from sieve.compression.masks.apply import MaskSlices, mask_, masked
from sieve.compression.masks.masks import Masks
from sieve.compression.plan import Plan
from sieve.models.linears import low_rank, prunable, replace
from sieve.nn.elastic_linear import SlicedLinear, centred_bias
from sieve.nn.fuse import fuse_


def apply_(model: PreTrainedModel, factors: Factors | Masks, plan: Mapping[str, int | str]) -> PreTrainedModel:
    """Replace the planned matrices by their low-rank pairs, or mask their weights, in place.

    Args:
        model: the dense model that `factors` were projected from.
        factors: nested factors of every prunable matrix (`sieve.project`), or its masks (`sieve.mask`).
        plan: matrix name → rank or "dense" (`sieve.search`, or your own dict); absent means dense. If it is a
            pivoted `Plan`, the pairs are `PivotedLinear`: the same maps in fewer parameters. Of masks, the rank is
            how many weights a row keeps; modules stay what they are.

    Returns: the same model object. Of the plan of a `sieve.search` with these factors it has, bit for bit, the weights
        whose scores were confirmed on the validation split.

    Raises: InputError before anything is changed, if the plan names an unknown matrix or an impossible rank.

    Example:
        >>> pruned = sieve.apply_(model, factors, {"model.layers.0.mlp.down_proj": 96})
    """
    plan = Plan(plan)
    matrices = factors.matrices(model) if isinstance(factors, Masks) else prunable(model, plan.pivoted)
    plan.check(matrices)
    factors.check(matrices, plan)
    if isinstance(factors, Masks):
        kept = mask_(model, factors, plan)
        fuse_(model)
        mark_masked(model, kept, factors.options.pattern)
        return model
    for name, rank in plan.ranks().items():
        replace(model, name, _stored(model.get_submodule(name), factors[name], rank, plan.pivoted))
    fuse_(model)
    mark(model)
    return model


@contextmanager
def applied(model: PreTrainedModel, factors: Factors | Masks, plan: Mapping[str, int | str]) -> Iterator[None]:
    """Within the block the model has the weights that `apply_` would give it, bit for bit; afterwards its own again.

    A search judges plans by slices of nested factors. What is stored of a plan is the same map but for rounding:
    pivoted, with the means in the bias, in the model's dtype. This is that form, for a look at it.

    Args:
        model: the dense model, or inside `sliced` with no plan set.
        factors, plan: as for `apply_`; whether pairs are pivoted is what the factors say.
    """
    if isinstance(factors, Masks):
        with masked(model, factors) as turned:
            turned.set(plan)
            yield
        return
    originals = {name: model.get_submodule(name) for name in factors}
    ranks = Plan(plan).ranks()
    try:
        for name, layer in originals.items():
            dense = layer.dense if isinstance(layer, SlicedLinear) else layer
            stored = _stored(dense, factors[name], ranks[name], factors.pivoted) if name in ranks else dense
            replace(model, name, stored)
        yield
    finally:
        for name, layer in originals.items():
            replace(model, name, layer)


@torch.no_grad()
def _stored(layer: nn.Module, factors: FactorPair, rank: int, pivot: bool) -> nn.Module:
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


@contextmanager
def sliced(model: nn.Module, factors: Factors | Masks) -> Iterator[Slices | MaskSlices]:
    """Within the block the model runs whatever plan was last set; afterwards it is the dense model again."""
    with (masked if isinstance(factors, Masks) else sliced_factors)(model, factors) as turned:
        yield turned
