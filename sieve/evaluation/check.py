"""Checks, before a model runs, that each example of a task can be scored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sieve.errors import InputError
from sieve.evaluation.scoring import Prepared, prepare
from sieve.tasks import Example, Task
from sieve.utils import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_splits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, splits: Mapping[str, Sequence[Example]]
) -> dict[str, Prepared]:
    """Tokenise the examples of every split as scoring does, to find errors early; the model does not run.

    Raises: InputError naming the split and the row of an example that cannot be scored, such as one with an answer that
        is longer than the model's context.
    """
    prepared: dict[str, Prepared] = {}
    # Notes and warnings come when the examples are scored.
    with progress.muted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for split, examples in splits.items():
            try:
                prepared[split] = prepare(model, tokenizer, task, examples)
            except InputError as error:
                where = _first_unfit(model, tokenizer, task, examples)
                raise InputError(f"{error} ({split} split{where})") from None
    return prepared


def _first_unfit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example]
) -> str:
    for example in examples:
        try:
            prepare(model, tokenizer, task, [example])
        except InputError:
            return f", {example.where}" if example.where else ""
    return ""
