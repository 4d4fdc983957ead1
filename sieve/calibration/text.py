"""Calibration data: task examples with their right answer, as padded batches of token ids under a token budget."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from sieve.errors import InputError
from sieve.tasks import Example, Task, encode

MINIMUM_TOKENS = 256


@dataclass(frozen=True)
class Batch:
    """ids [B, T] int64 and mask [B, T] int64, 1 on tokens and 0 on the padding to their right."""

    ids: torch.Tensor
    mask: torch.Tensor


def calibration_sequences(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], tokens: int, context: int
) -> list[list[int]]:
    """Prompt and right answer of each example, in the split's order, until `tokens` are reached.

    The last sequence is cut at the budget, longer ones at the model's `context`.

    Raises: InputError for a budget or a split below `MINIMUM_TOKENS`.
    """
    if tokens < MINIMUM_TOKENS:
        raise InputError(f"--calibration-tokens {tokens} is too few: use at least {MINIMUM_TOKENS}, better 16,000")
    sequences, left = [], tokens
    for example in examples:
        ids, _ = encode(tokenizer, task, example, example.target)
        ids = ids[: min(left, context)]
        sequences.append(ids)
        left -= len(ids)
        if left <= 0:
            break
    if tokens - left < MINIMUM_TOKENS:
        raise InputError(
            f"the calibration split of {task.name!r} holds only {tokens - left} tokens, too few to prune by: "
            f"give it more examples (at least {MINIMUM_TOKENS} tokens, better 16,000)"
        )
    return sequences


def fingerprint(sequences: Sequence[Sequence[int]]) -> str:
    """sha256 of the token ids, sequence boundaries included."""
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(torch.tensor([len(ids), *ids], dtype=torch.int64).numpy().tobytes())
    return digest.hexdigest()


def batches(sequences: Sequence[Sequence[int]], batch_tokens: int) -> list[Batch]:
    """Sequences of similar length together, padded on the right; at most `batch_tokens` cells each."""
    result, rows = [], []
    for ids in sorted(sequences, key=len):
        if rows and (len(rows) + 1) * len(ids) > batch_tokens:
            result.append(_pad(rows))
            rows = []
        rows.append(ids)
    return [*result, _pad(rows)]


def _pad(rows: list[Sequence[int]]) -> Batch:
    longest = max(len(ids) for ids in rows)
    ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows])
    lengths = torch.tensor([len(ids) for ids in rows])
    return Batch(ids, (torch.arange(longest) < lengths[:, None]).long())
