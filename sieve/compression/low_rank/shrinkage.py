"""How far to trust a Gram matrix of few tokens: shrinking it toward a prior, by the output error on held-back tokens.

C' = (1 - s) C + s P. P is diag(C), channels as large as they are with nothing in common; or the Gram matrix of general
text, scaled to as many tokens. Of outputs, both are seen through W.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from sieve.calibration.collect import HELD_BACK, collect
from sieve.calibration.statistics import Statistics
from sieve.calibration.text import Sample, batches
from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.loading import evaluating
from sieve.models.prunable_model import PrunableModel
from sieve.utils import progress

SHARES = (0.0, 0.01, 0.03, 0.1, 0.3)
"""Candidates for s."""

KEPT = 0.5
"""Matrices are cut to this fraction for the comparison …"""

EVERY = 3
"""… in every third block."""

_BATCH_TOKENS = 4096
Pairs = Mapping[str, FactorPair]


def choose_shrinkage(
    model: PreTrainedModel | PrunableModel,
    statistics: Statistics,
    pairs_at: Callable[[float, Statistics, dict[str, int]], Pairs],
) -> float:
    """The share with the least output error on held-back tokens, relative to each matrix's output and on average.

    Where calibration held no examples back, the last eighth of them is taken out of the sums for the comparison.

    Args:
        pairs_at: share, statistics and rank by matrix → pairs of those ranks.

    Raises: InputError where the statistics hold too few examples to keep some back.
    """
    model = PrunableModel.of(model)
    known, held = split(model, statistics)
    ranks = Plan.uniform((m for m in model.matrices().values() if m.block % EVERY == 0), KEPT).ranks()
    errors = output_errors(model, held, [pairs_at(share, known, ranks) for share in SHARES], ranks)
    for share, error in zip(SHARES, errors, strict=True):
        progress.say(f"  shrinkage {share:g}: {error:.5f} of the output lost on held-back calibration examples")
    finite = [error if error == error else float("inf") for error in errors]
    return SHARES[finite.index(min(finite))]


def split(model: PreTrainedModel | PrunableModel, statistics: Statistics) -> tuple[Statistics, list[Sample]]:
    """Statistics without some of their examples, and those."""
    if statistics.held_back:
        return statistics, statistics.held_back
    if len(statistics.samples) < 2:
        raise InputError(
            "shrinkage is chosen on held-back calibration examples and there are too few: raise --calibration-tokens"
        )
    held = statistics.samples[-max(1, len(statistics.samples) // HELD_BACK) :]
    inputs = all(source.side == "input" for source in statistics.sources.values())
    seen = collect(model, batches(held, _BATCH_TOKENS), "input" if inputs else "cheapest")
    known = replace(
        statistics,
        grams={key: gram - seen.grams[key] if key in seen.grams else gram for key, gram in statistics.grams.items()},
        sums={key: sums - seen.sums[key] for key, sums in statistics.sums.items()},
        tokens=statistics.tokens - seen.tokens,
        samples=statistics.samples[: -len(held)],
    )
    return known, held


@torch.no_grad()
def output_errors(
    model: PreTrainedModel | PrunableModel, samples: list[Sample], candidates: list[Pairs], ranks: Mapping[str, int]
) -> list[float]:
    """Σ |y - ŷ|² / Σ |y|² at the inputs that the dense model has on `samples`, a mean over the matrices of `ranks`."""
    model = PrunableModel.of(model)
    lost = {name: torch.zeros(len(candidates) + 1, dtype=torch.float64) for name in ranks}
    mask: torch.Tensor | None = None

    def watch(name: str):
        factors = [tuple(factor.float() for factor in pairs[name].slice(ranks[name])) for pairs in candidates]
        shifts = [pairs[name].shift(ranks[name]) for pairs in candidates]

        def hook(layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
            output = output if layer.bias is None else output - layer.bias
            x, y = (tensor.reshape(-1, tensor.shape[-1])[mask].float() for tensor in (args[0], output))
            squares = [
                (y - x @ A.T @ B.T - (0 if shift is None else shift)).square().sum()
                for (A, B), shift in zip(factors, shifts, strict=True)
            ]
            lost[name] += torch.stack([*squares, y.square().sum()]).double().cpu()

        return hook

    # One pass of the dense model over the held-back examples serves all candidates.
    with ExitStack() as hooks, evaluating(model.model):
        for name in ranks:
            hooks.callback(model.layer(name).register_forward_hook(watch(name)).remove)
        for batch in batches(samples, _BATCH_TOKENS):
            attended = batch.mask.to(model.device)
            mask = attended.flatten().bool()
            model.run_decoder(batch.ids, attended)
    # A share for each matrix that has outputs at all, then their mean.
    alive = [row for row in lost.values() if row[-1] > 0]
    shares = torch.stack([row[:-1] / row[-1] for row in alive]) if alive else torch.zeros(1, len(candidates))
    return shares.mean(0).tolist()
