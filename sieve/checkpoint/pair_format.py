"""The format in which pairs are stored: pivoted, or plain for readers that know products only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sieve.errors import InputError
from sieve.nn.low_rank import LowRankLinear, PivotedLinear

FORMATS = ("pivoted", "plain")


def check_format(name: str | None) -> None:
    """InputError unless `name` is a format or None."""
    if name is not None and name not in FORMATS:
        raise InputError(f"the format of pairs must be {' or '.join(FORMATS)}, got {name!r}")


@contextmanager
def in_format(model: nn.Module, name: str | None) -> Iterator[None]:
    """Within the block all pairs of the model are of this format, afterwards what they were; None: as they are.

    Plain pairs are the same map as the pivoted ones, exactly, in r² more numbers. Pivoted ones are the same map as the
    plain ones up to the rounding of a new basis.
    """
    check_format(name)
    if name is None:
        yield
        return
    # Importing this module must not import transformers.
    from sieve.models.linears import replace

    other, convert = (PivotedLinear, _plain) if name == "plain" else (LowRankLinear, _pivoted)
    pairs = {at: pair for at, pair in model.named_modules(remove_duplicate=False) if type(pair) is other}
    present = getattr(model.config, "quantization_config", None)
    made: dict[nn.Module, nn.Module] = {}
    try:
        for at, pair in pairs.items():
            if pair not in made:
                made[pair] = convert(pair)
            replace(model, at, made[pair])
        yield
    finally:
        for at, pair in pairs.items():
            replace(model, at, pair)
        if present is not None:
            model.config.quantization_config = present


@torch.no_grad()
def _plain(pair: PivotedLinear) -> LowRankLinear:
    """The same map with the rows of the identity among those of C."""
    m, r, like = pair.out_features, pair.rank, pair.A.weight
    bias = pair.bias is not None
    made = LowRankLinear(pair.in_features, m, r, bias, device=like.device, dtype=like.dtype)
    made.A.weight.copy_(like)
    made.B.weight[pair.permutation] = torch.cat([torch.eye(r, device=like.device, dtype=like.dtype), pair.C.weight])
    if bias:
        made.B.bias.copy_(pair.bias)
    return made.train(pair.training)


@torch.no_grad()
def _pivoted(pair: LowRankLinear) -> PivotedLinear:
    """The same map in the basis of some of its outputs."""
    from sieve.nn.pivot import pivot

    like, bias = pair.A.weight, pair.B.bias
    if pair.rank > pair.out_features:
        raise InputError(f"a pair of rank {pair.rank} with {pair.out_features} outputs cannot be stored pivoted")
    made = PivotedLinear(
        pair.in_features, pair.out_features, pair.rank, bias is not None, device=like.device, dtype=like.dtype
    )
    A, C, permutation = pivot(like, pair.B.weight)
    made.A.weight.copy_(A)
    made.C.weight.copy_(C)
    made.permutation.copy_(permutation)
    if bias is not None:
        made.bias.copy_(bias)
    return made.train(pair.training)
