"""The format in which pairs are stored: pivoted, or plain for readers that know products only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sieve.errors import InputError
from sieve.nn.formats.base import LowRankFormat, format_of
from sieve.nn.formats.pair import Pair
from sieve.nn.formats.pivoted_pair import PivotedPair

FORMATS: dict[str, type[LowRankFormat]] = {"pivoted": PivotedPair, "plain": Pair}


def check_format(name: str | None) -> None:
    """InputError unless `name` is a format or None."""
    if name is not None and name not in FORMATS:
        raise InputError(f"the format of pairs must be {' or '.join(FORMATS)}, got {name!r}")


@contextmanager
def in_format(model: nn.Module, name: str | None) -> Iterator[None]:
    """Within the block all pairs of the model have this format, afterwards their own again; None: no change.

    Plain pairs are the same map as the pivoted ones, exactly, in r² more numbers. Pivoted ones are the same map as the
    plain ones up to the rounding of a new basis.
    """
    check_format(name)
    if name is None:
        yield
        return
    # Importing this module must not import transformers.
    from sieve.models.linears import replace

    # Find pairs of the other format, and convert a shared pair only once.
    others = tuple(kind for kind in FORMATS.values() if kind is not FORMATS[name])
    found = dict(model.named_modules(remove_duplicate=False))
    pairs = {at: pair for at, pair in found.items() if isinstance(format_of(pair), others)}
    present = getattr(model.config, "quantization_config", None)
    made: dict[nn.Module, nn.Module] = {}
    try:
        for at, pair in pairs.items():
            if pair not in made:
                made[pair] = _converted(pair, FORMATS[name])
            replace(model, at, made[pair])
        yield
    finally:
        for at, pair in pairs.items():
            replace(model, at, pair)
        # Saving inside the block has changed the configuration: put it back.
        if present is not None:
            model.config.quantization_config = present


def _converted(pair: nn.Module, kind: type[LowRankFormat]) -> nn.Module:
    """The pair in another format, with the same map."""
    A, B, bias = format_of(pair).factors(pair)
    format = kind(A.shape[0])
    made = format.module(B.shape[0], A.shape[1], bias is not None, A.device, A.dtype)
    format.fill_(made, A, B, bias)
    return made.train(pair.training)
