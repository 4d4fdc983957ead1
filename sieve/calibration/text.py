"""Calibration data: task examples with their right answer, as padded batches of token ids under a token budget."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from sieve.calibration.config import ENOUGH_TOKENS, MINIMUM_TOKENS
from sieve.errors import InputError
from sieve.tasks import Example, Task
from sieve.tasks.encoding import Encoded, encode_target, fitted, windows
from sieve.utils import progress
from sieve.utils.messages import shorten


class Sample(NamedTuple):
    """Token ids of an example, and where its right answer starts."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class Batch:
    """ids [B, T] int64; mask [B, T] int64, 1 on tokens and 0 on the padding to their right; starts [B] of answers."""

    ids: torch.Tensor
    mask: torch.Tensor
    starts: torch.Tensor

    def rows(self, first: int, end: int) -> "Batch":
        """These rows, padded as they are."""
        return Batch(self.ids[first:end], self.mask[first:end], self.starts[first:end])


def calibration_sequences(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    tokens: int,
    context: int,
    generated: int = 0,
) -> list[Sample]:
    """Prompt and right answer of each example, in the split's order, until `tokens` are reached.

    Prompts that are longer than `context` are cut as for evaluation, and so is the last one at the budget; texts
    without a prompt (perplexity) are read in windows of `context`.

    Args: generated: how many tokens of text that the model generates are added later.

    Raises: InputError for a budget or a split below `MINIMUM_TOKENS`, or an answer longer than `context`.
    """
    if tokens < MINIMUM_TOKENS:
        raise InputError(
            f"--calibration-tokens {tokens} is too few: use at least {MINIMUM_TOKENS}, better {ENOUGH_TOKENS:,}"
        )
    # Take examples until the budget is spent; the last one may be cut.
    sequences, left, truncated = [], tokens, 0
    for example in examples:
        ids, start = encode_target(tokenizer, task, example)
        if not task.has_prompts:
            pieces = windows(ids, start, context - 1)
        else:
            pieces = fitted(tokenizer, task, [(ids, start)], context)
            truncated += len(pieces[0][0]) < len(ids)
        for piece in pieces:
            sample = _within(tokenizer, task, piece, left)
            if sample is None:
                left = 0
                break
            sequences.append(sample)
            left -= len(sample.ids)
        if left <= 0:
            break
    if truncated:
        progress.note(f"calibration: {truncated} prompts are longer than {context} tokens and were cut")
    # With far too few tokens pruning makes no sense; a small number only deserves a note.
    found = sum(len(ids) for ids, _ in sequences)
    if found < MINIMUM_TOKENS:
        raise InputError(
            f"the calibration split of {shorten(task.name)} holds only {found} tokens, too few to prune by: "
            f"give it more examples (at least {MINIMUM_TOKENS} tokens, better {ENOUGH_TOKENS:,})"
        )
    if found + generated < ENOUGH_TOKENS:
        more = "raise --calibration-tokens"
        if found + context <= tokens:
            rest = f"or let the model generate the rest: --generated-tokens {ENOUGH_TOKENS - found}"
            more = f"give the calibration split more examples, {rest}"
        progress.note(
            f"only {found + generated:,} tokens to calibrate with, where {ENOUGH_TOKENS:,} or more are advised: {more}"
        )
    return sequences


def _within(tokenizer: PreTrainedTokenizerBase, task: Task, piece: Encoded, left: int) -> Sample | None:
    """The part of a sequence that fits into the budget; None if the answer alone is longer."""
    ids, start = piece
    if not task.has_prompts:
        return Sample(ids[:left], start) if left > 0 else None
    try:
        return Sample(*fitted(tokenizer, task, [piece], left)[0])
    except InputError:
        return None


def fingerprint(sequences: Sequence[Sample], answers: bool = False) -> str:
    """sha256 of the token ids, sequence boundaries included; with `answers`, also of the answers' starts."""
    digest = hashlib.sha256()
    for ids, start in sequences:
        numbers = [len(ids), *ids, *([start] if answers else [])]
        digest.update(torch.tensor(numbers, dtype=torch.int64).numpy().tobytes())
    return digest.hexdigest()


def batches(sequences: Sequence[Sample], batch_tokens: int) -> list[Batch]:
    """Batches of sequences of similar length, padded on the right; at most `batch_tokens` cells each."""
    result, rows = [], []
    for sample in sorted(sequences, key=lambda sample: len(sample.ids)):
        if rows and (len(rows) + 1) * len(sample.ids) > batch_tokens:
            result.append(_pad(rows))
            rows = []
        rows.append(sample)
    return [*result, _pad(rows)]


def _pad(rows: list[Sample]) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in rows])
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    starts = torch.tensor([start for _, start in rows])
    return Batch(ids, (torch.arange(longest) < lengths[:, None]).long(), starts)
