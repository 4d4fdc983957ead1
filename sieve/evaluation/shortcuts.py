"""Which shortcuts of scoring give a model's plain result; tried once per model, on a few of the task's sequences.

Plain scoring runs one sequence at a time, without cache, with all logits. Every shortcut (prefixes that are run once,
logits of a few positions, rows of several sequences, steps of one token) must give the same result up to rounding. The
size of rounding is measured on the model: how much do its log-likelihoods move when its embeddings move by their last
digit? A shortcut that changes results by more is not used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import DynamicCache

from sieve.errors import InputError
from sieve.evaluation.likelihood import EVERYTHING, Continuation, Sharing, can_reuse_cache, score
from sieve.evaluation.steps import last_logprobs
from sieve.models.loading import check_token_ids, evaluating
from sieve.utils import progress
from sieve.utils.devices import device_failed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Only this many tokens of a sequence are tried, unless the model's window is longer.
LONGEST = 512
# float32 may always be off by this many nats.
_SAME = 1e-4
_NAMES = {
    "prefix": "run shared beginnings once",
    "logits": "compute few logits",
    "padding": "sort by length",
    "rows": "batch sequences",
    "steps": "write answers on top of prompts that were run before",
}
_found: WeakKeyDictionary[PreTrainedModel, dict[tuple, Sharing]] = WeakKeyDictionary()


def shortcuts_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Sequence[Continuation]],
    wanted: Sharing,
) -> Sharing:
    """`verified`, after a check that all tokens of the questions have an embedding (else InputError)."""
    check_token_ids(model, tokenizer, max(max(one.ids) for question in questions for one in question))
    return verified(model, questions, wanted)


def verified(model: PreTrainedModel, questions: Sequence[Sequence[Continuation]], wanted: Sharing) -> Sharing:
    """Those of the `wanted` shortcuts that give the plain result on this model.

    Raises: InputError for a model that is not causal.
    """
    window = getattr(model.config.get_text_config(decoder=True), "sliding_window", None) or 0
    beyond = bool(window) and any(len(one.ids) > window for question in questions for one in question)
    key = getattr(model.config, "_attn_implementation", None), model.dtype, str(model.device), beyond
    known = _found.setdefault(model, {})
    if key not in known:
        with evaluating(model), torch.inference_mode(), progress.muted():
            found = _verify(model, _sample(questions, window if beyond else 0))
        known[key] = found
        left_out = [_NAMES[field.name] for field in fields(Sharing) if not getattr(found, field.name)]
        if left_out:
            progress.note_once(
                f"{type(model).__name__} scores otherwise, or not at all, if Sieve would {', '.join(left_out)}: "
                "it is evaluated without that"
            )
    return _both(wanted, known[key])


def allowed(model: PreTrainedModel) -> Sharing:
    """The shortcuts that `verified` has found to work; all of them before its first run."""
    found = EVERYTHING
    for one in _found.get(model, {}).values():
        found = _both(found, one)
    return found


def _both(one: Sharing, two: Sharing) -> Sharing:
    return Sharing(**{field.name: getattr(one, field.name) and getattr(two, field.name) for field in fields(Sharing)})


def _sample(questions: Sequence[Sequence[Continuation]], window: int) -> list[list[Continuation]]:
    """Two short questions of different lengths, and one that is longer than the window; two sequences of each."""

    def length(question: Sequence[Continuation]) -> int:
        return max(len(one.ids) for one in question)

    ordered = sorted((question for question in questions if question), key=length)
    chosen = [ordered[0], next((one for one in ordered if length(one) > length(ordered[0])), ordered[-1])]
    chosen = [_shortened(question, LONGEST) for question in chosen]
    if window:
        chosen.append(next(question for question in ordered if length(question) > window))
    pairs = [(min(one, key=_length), max(reversed(one), key=_length)) for one in chosen]
    return [[short] if short is long else [short, long] for short, long in pairs]


def _length(sequence: Continuation) -> int:
    return len(sequence.ids)


def _shortened(question: Sequence[Continuation], limit: int) -> list[Continuation]:
    """The question without the beginning of its prompt."""
    start = min(one.start for one in question)
    cut = max(0, min(max(map(_length, question)) - limit, start - 1))
    return [Continuation(one.ids[cut:], one.start - cut) for one in question]


def _verify(model: PreTrainedModel, questions: list[list[Continuation]]) -> Sharing:
    sequences = [one for question in questions for one in question]
    # What plain evaluation gives, and how far rounding moves it.
    plain = [_plain(model, one.ids) for one in sequences]
    sums = [_sum(values, one) for values, one in zip(plain, sequences, strict=True)]
    if not all(map(math.isfinite, sums)):
        # Let the evaluation itself run into the fault: its error names the layer.
        return EVERYTHING
    with _last_digits_moved(model):
        moved = [_sum(_plain(model, one.ids), one) for one in sequences]
    spread = max(abs(one - two) for one, two in zip(sums, moved, strict=True))
    rounding = torch.finfo(model.dtype).eps * max(map(abs, sums))
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None) or 1
    # A rounding in each of some four steps of every block, as in a random walk; twice that, to be sure.
    bound = max(_SAME, 2 * rounding, 2 * math.sqrt(4 * depth) * spread)
    _require_causal(model, sequences, plain, bound)

    def works(sharing: Sharing) -> bool:
        try:
            if sharing.prefix and not _fills_cache(model, sequences[0].ids):
                return False
            found, _ = score(model, questions, 1 << 20, "", sharing)
        except Exception as error:
            # An architecture may raise anything for a cache that it does not know.
            if device_failed(error):
                raise
            return False
        got = [value for values in found for value in values]
        return all(abs(one - two) <= bound for one, two in zip(got, sums, strict=True))

    def steps_work(sharing: Sharing) -> bool:
        if not can_reuse_cache(model):
            # Without a reusable cache there are no steps that could be wrong.
            return True
        try:
            found = last_logprobs(model, sequences, sharing)
        except Exception as error:
            # As above, an architecture may raise anything.
            if device_failed(error):
                raise
            return False
        pairs = [(sum(got), float(want[-len(got) :].sum())) for got, want in zip(found, plain, strict=True)]
        return sharing.prefix and all(abs(one - two) <= bound for one, two in pairs)

    # Take all shortcuts together, or else those that work alone, if these also work together.
    if works(EVERYTHING):
        return replace(EVERYTHING, steps=steps_work(EVERYTHING))
    names = [field.name for field in fields(Sharing) if field.name != "steps"]
    none = Sharing(**dict.fromkeys((*names, "steps"), False))
    alone = replace(none, **{name: works(replace(none, **{name: True})) for name in names})
    return replace(alone, steps=steps_work(alone)) if works(alone) else none


def _fills_cache(model: PreTrainedModel, ids: Sequence[int]) -> bool:
    """Whether the model fills its cache: else a continuation loses its prompt, even if the result hardly shows it."""
    if not can_reuse_cache(model):
        return True
    cache = DynamicCache()
    model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True, return_dict=True)
    return cache.get_seq_length() == len(ids)


def _plain(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Log-probability of each token after those before it, float64 [T - 1]."""
    given = torch.tensor([ids], device=model.device)
    logits = model(input_ids=given, use_cache=False, return_dict=True).logits[0, :-1]
    chosen = logits.gather(1, given[0, 1:, None])[:, 0].double()
    return (chosen - torch.cat([rows.float().logsumexp(-1) for rows in logits.split(256)]).double()).cpu()


def _sum(logprobs: torch.Tensor, sequence: Continuation) -> float:
    return float(logprobs[sequence.start - 1 :].sum())


def _require_causal(
    model: PreTrainedModel, sequences: Sequence[Continuation], plain: Sequence[torch.Tensor], bound: float
) -> None:
    """InputError if a different last token changes the predictions before it: the model is not causal."""
    for sequence, before in zip(sequences, plain, strict=True):
        ids = sequence.ids
        other = next((token for token in reversed(ids) if token != ids[-1]), 0 if ids[-1] else 1)
        # The last token's own log-probability is predicted before it is read, so it counts, too.
        given = torch.tensor([[*ids[:-1], other]], device=model.device)
        logits = model(input_ids=given, use_cache=False, return_dict=True).logits[0, :-1].float()
        targets = torch.tensor(ids[1:], device=model.device)[:, None]
        after = (logits.gather(1, targets)[:, 0] - logits.logsumexp(-1)).double().cpu()
        if float((after - before).abs().max()) > bound:
            raise InputError(
                f"{type(model).__name__} is not a causal language model: a later token changes what it predicts before "
                "it; use a decoder (for models such as BERT, one with is_decoder in its configuration)"
            )


@contextmanager
def _last_digits_moved(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block each embedded number is larger or smaller by its last digit."""

    def move(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        signs = 1 - 2 * (torch.arange(output.numel(), device=output.device) * 2654435761 >> 13 & 1)
        return output * (1 + torch.finfo(output.dtype).eps * signs.reshape(output.shape)).to(output.dtype)

    handle = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()
