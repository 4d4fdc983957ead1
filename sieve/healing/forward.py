"""Log-probabilities at the tokens that a packed batch predicts, with gradients or without."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sieve.evaluation.likelihood import logits_at
from sieve.evaluation.shortcuts import allowed
from sieve.healing.rows import Packed, Question, pack
from sieve.utils.devices import device_failed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# For rows up to this many tokens, torch's plain attention is faster backward on CPU than the fused one.
_SHORT = 512
# log-probabilities of float32 may be off by this many nats.
_SAME = 1e-3


@dataclass(frozen=True)
class Predicted:
    """Predictions for some questions: logprobs float32 [N, vocabulary] at the targets of all their endings, in order;
    targets int64 [N]; owners int64 [N]; judged: one tensor [endings] per question, as the task compares them."""

    logprobs: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    judged: list[torch.Tensor]


def predict(model: PreTrainedModel, questions: Sequence[Question], together: bool) -> Predicted:
    """The model's predictions for the questions' endings. `together`: one row per question (see `packs`)."""
    packed = pack([(one.prompt, one.endings) for one in questions], together, model.dtype)
    logprobs = _logprobs(model, packed)
    targets, owners = packed.targets.to(logprobs.device), packed.owners.to(logprobs.device)
    sums = _sums(logprobs, targets, owners, packed.endings)
    judged, first = [], 0
    priors = _priors(model, questions, together)
    for one, prior in zip(questions, priors, strict=True):
        own = sums[first : first + len(one.endings)]
        judged.append((own if prior is None else own - prior) * own.new_tensor(one.scale))
        first += len(one.endings)
    return Predicted(logprobs, targets, owners, judged)


def packs(model: PreTrainedModel, questions: Sequence[Question]) -> bool:
    """Whether endings in one row get the same predictions as alone: not all models accept masks and positions."""
    window = getattr(model.config.get_text_config(decoder=True), "sliding_window", None) or 0
    if window and any(one.length > window for one in questions):
        return False
    sample = sorted(questions, key=lambda one: one.length)[:2]
    try:
        with torch.no_grad():
            alone, rows = (predict(model, sample, together) for together in (False, True))
    except Exception as error:
        if device_failed(error):
            raise
        # An architecture may raise anything for arguments that it does not know.
        return False
    one, two = (each.logprobs.gather(1, each.targets[:, None]) for each in (alone, rows))
    bound = max(_SAME, 8 * torch.finfo(model.dtype).eps * float(one.abs().max()))
    return bool((one - two).abs().max() <= bound)


def _priors(model: PreTrainedModel, questions: Sequence[Question], together: bool) -> list[torch.Tensor | None]:
    """Log-likelihoods of each question's endings after its neutral prompt; equal endings are run once."""
    asked: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for one in questions:
        for ending in one.neutral_endings:
            places = asked.setdefault(one.neutral, {})
            places.setdefault(ending, len(places))
    if not asked:
        return [None] * len(questions)
    packed = pack([(prompt, list(places)) for prompt, places in asked.items()], together, model.dtype)
    logprobs = _logprobs(model, packed)
    sums = _sums(logprobs, packed.targets.to(logprobs.device), packed.owners.to(logprobs.device), packed.endings)
    firsts = dict(zip(asked, torch.tensor([0, *map(len, asked.values())]).cumsum(0).tolist(), strict=False))
    return [
        sums[[firsts[one.neutral] + asked[one.neutral][ending] for ending in one.neutral_endings]] for one in questions
    ]


def _sums(logprobs: torch.Tensor, targets: torch.Tensor, owners: torch.Tensor, endings: int) -> torch.Tensor:
    """Log-likelihood of each ending [endings]."""
    return logprobs.new_zeros(endings).index_add(0, owners, logprobs.gather(1, targets[:, None])[:, 0])


def _logprobs(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """Log-probabilities [N, vocabulary], float32 (float64 for a float64 model)."""
    device = model.device
    inputs = {}
    if packed.mask is not None:
        inputs = {"attention_mask": packed.mask.to(device), "position_ids": packed.positions.to(device)}
    plain = device.type == "cpu" and packed.ids.shape[1] <= _SHORT
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        logits = logits_at(model, packed.ids.to(device), packed.cells.to(device), few=allowed(model).logits, **inputs)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
