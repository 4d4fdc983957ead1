"""How far a pruned model is from its teacher, or from the labels, on some lessons, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sieve.healing.forward import Predicted
from sieve.healing.teacher import Lesson

# The probability of all tokens outside the top is at least this, so that its logarithm is finite.
_LEAST = 1e-6


@dataclass(frozen=True)
class Distance:
    """Sums of KL(teacher ‖ model): between the choices, over questions; over the vocabulary, over targets."""

    choices: torch.Tensor
    tokens: torch.Tensor


def distance(predicted: Predicted, lessons: Sequence[Lesson]) -> Distance:
    """The distance between predictions and lessons of the same questions, in the same order."""
    device = predicted.logprobs.device
    top = torch.cat([lesson.top for lesson in lessons]).to(device)
    wanted = torch.cat([lesson.logprobs for lesson in lessons]).to(device)
    tokens = _token_divergence(predicted.logprobs.gather(1, top), wanted, top.shape[1] < predicted.logprobs.shape[1])
    counts = torch.cat([lesson.counts for lesson in lessons]).to(device)
    choices = predicted.logprobs.new_zeros(())
    for lesson, judged in zip(lessons, predicted.judged, strict=True):
        if lesson.question.choices:
            p, q = lesson.judged.to(device).log_softmax(0), judged.log_softmax(0)
            choices = choices + (p.exp() * (p - q)).sum()
    return Distance(choices, tokens[counts].sum())


def _token_divergence(found: torch.Tensor, wanted: torch.Tensor, others: bool) -> torch.Tensor:
    """KL at each target [N] from log-probabilities [N, k]. others: all tokens beyond these k count as one token."""
    divergence = (wanted.exp() * (wanted - found)).sum(1)
    if not others:
        return divergence
    rest, left = ((1 - each.exp().sum(1)).clamp_min(_LEAST) for each in (wanted, found))
    return divergence + rest * (rest.log() - left.log())
