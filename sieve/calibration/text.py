"""Calibration data: task examples with their right answer, as padded batches of token ids under a token budget."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from sieve.errors import InputError
from sieve.tasks import Example, Task
from sieve.tasks.encoding import encode_target

MINIMUM_TOKENS = 256


class Text(NamedTuple):
    """Token ids of an example, and where its right answer starts."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class Batch:
    """ids [B, T] int64; mask [B, T] int64, 1 on tokens and 0 on the padding to their right; starts [B] of answers."""

    ids: torch.Tensor
    mask: torch.Tensor
    starts: torch.Tensor


def calibration_sequences(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], tokens: int, context: int
) -> list[Text]:
    """Prompt and right answer of each example, in the split's order, until `tokens` are reached.

    The last sequence is cut at the budget, longer ones at the model's `context`.

    Raises: InputError for a budget or a split below `MINIMUM_TOKENS`.
    """
    if tokens < MINIMUM_TOKENS:
        raise InputError(f"--calibration-tokens {tokens} is too few: use at least {MINIMUM_TOKENS}, better 16,000")
    sequences, left = [], tokens
    for example in examples:
        ids, start = encode_target(tokenizer, task, example)
        ids = ids[: min(left, context)]
        sequences.append(Text(ids, start))
        left -= len(ids)
        if left <= 0:
            break
    if tokens - left < MINIMUM_TOKENS:
        raise InputError(
            f"the calibration split of {task.name!r} holds only {tokens - left} tokens, too few to prune by: "
            f"give it more examples (at least {MINIMUM_TOKENS} tokens, better 16,000)"
        )
    return sequences


def fingerprint(sequences: Sequence[Text], answers: bool = False) -> str:
    """sha256 of the token ids, sequence boundaries included; with `answers`, also of where those start."""
    digest = hashlib.sha256()
    for ids, start in sequences:
        numbers = [len(ids), *ids, *([start] if answers else [])]
        digest.update(torch.tensor(numbers, dtype=torch.int64).numpy().tobytes())
    return digest.hexdigest()


def batches(sequences: Sequence[Text], batch_tokens: int) -> list[Batch]:
    """Sequences of similar length together, padded on the right; at most `batch_tokens` cells each."""
    result, rows = [], []
    for text in sorted(sequences, key=lambda text: len(text.ids)):
        if rows and (len(rows) + 1) * len(text.ids) > batch_tokens:
            result.append(_pad(rows))
            rows = []
        rows.append(text)
    return [*result, _pad(rows)]


def _pad(rows: list[Text]) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in rows])
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    starts = torch.tensor([start for _, start in rows])
    return Batch(ids, (torch.arange(longest) < lengths[:, None]).long(), starts)
