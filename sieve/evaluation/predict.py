"""A model's answers to rows whose right answers are not known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sieve.errors import InputError
from sieve.evaluation.choices import ask_choices, log_softmax, say_truncated
from sieve.evaluation.likelihood import cells_of_a_pass
from sieve.models.loading import context_length, evaluating
from sieve.tasks import Example, Task, load_task
from sieve.tasks.example import render_unanswered, with_shots
from sieve.tasks.row import Row, flat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

READ_AHEAD = 256
"""Rows that are read before the first of them is answered: batches are made of rows of similar length among them."""
# Characters of these rows' texts: bounds the memory if rows are long.
_CHARACTERS = 1 << 19


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one row.

    row: as it was given.
    answer: the likeliest choice, without white space around it; of a generation task, what the model wrote.
    index: the choice's place, from 0; None where answers are written.
    probabilities: choice → its probability in [0, 1], given that one of them is right: the softmax of what the task
        compares (see `normalize`). In the choices' order; empty where answers are written.
    """

    row: Mapping[str, Any]
    answer: str
    index: int | None = None
    probabilities: dict[str, float] = field(default_factory=dict)


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str | Task,
    rows: Iterable[Mapping[str, Any]],
    batch_tokens: int | None = None,
    seed: int = 0,
) -> Iterator[Prediction]:
    """Answer the task's question for each row, in order; rows are read a few ahead, as answers are asked for.

    `sieve.evaluate` judges the same answers. The other rows change a row's numbers by rounding only.

    Args:
        model: any `AutoModelForCausalLM`; left as it was.
        task: a `Task`, a built-in name or a task file, of type multiple_choice or generation.
        rows: field → value, as the task's data has them. Only the fields of prompt and choices are needed.
        batch_tokens: cells (rows × padded length) of one forward pass; memory grows with it. None: 2,048 on a CPU and
            16,384 elsewhere.
        seed: of the task's splits, from which the few-shot examples are taken, where it has such.

    Raises: InputError for a row that cannot be asked, naming it, and for a perplexity task; NumericsError naming the
        layer where NaN or infinity first appears.

    Example:
        >>> model, tokenizer = sieve.load("runs/mine")
        >>> for one in sieve.predict(model, tokenizer, "runs/mine/task.yaml", [{"city": "Lagos", …}]):
        ...     print(one.answer, one.probabilities)
    """
    task = load_task(task)
    require_answers(task)
    asked = ((row, Row(flat(row), f"row {number}")) for number, row in enumerate(rows, 1))
    return predict_rows(model, tokenizer, task, asked, batch_tokens, seed)


def require_answers(task: Task) -> None:
    """InputError for a task that has no answers to give."""
    if task.type == "perplexity":
        raise InputError(
            f"{task.where}: a task of type perplexity asks nothing: `sieve eval` scores its texts; to have "
            "answers written, make it one of type generation"
        )


def predict_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Iterable[tuple[Mapping[str, Any], Row]],
    batch_tokens: int | None = None,
    seed: int = 0,
) -> Iterator[Prediction]:
    """`predict` for rows as they are given and as the task reads them."""
    shots = task.solved_examples(seed)
    cells = batch_tokens or cells_of_a_pass(model.device)
    answer = _written if task.type == "generation" else _chosen
    for part in chunks(rows):
        examples = render_unanswered(task, [row for _, row in part])
        if shots:
            examples = [with_shots(example, shots) for example in examples]
        yield from answer(model, tokenizer, task, [given for given, _ in part], examples, cells)


def chunks(rows: Iterable[tuple[Mapping[str, Any], Row]]) -> Iterator[list[tuple[Mapping[str, Any], Row]]]:
    """A bounded part of the rows at a time."""
    ahead: list[tuple[Mapping[str, Any], Row]] = []
    size = 0
    for given, row in rows:
        ahead.append((given, row))
        size += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if len(ahead) == READ_AHEAD or size >= _CHARACTERS:
            yield ahead
            ahead, size = [], 0
    if ahead:
        yield ahead


def _chosen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    batch_tokens: int,
) -> list[Prediction]:
    asked = ask_choices(model, tokenizer, task, examples, batch_tokens)
    with evaluating(model), torch.inference_mode():
        ((_, judged),), _ = asked.run(model)
    predictions = []
    for row, example, values in zip(rows, examples, judged, strict=True):
        texts = [text.strip() for text in example.choices]
        index = int(values.argmax())
        shares = np.exp(log_softmax(values)).tolist()
        predictions.append(Prediction(row, texts[index], index, dict(zip(texts, shares, strict=True))))
    return predictions


def _written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    batch_tokens: int,
) -> list[Prediction]:
    # This import loads much of transformers.
    from sieve.evaluation.generation import prompts_of, write_answers

    prompts, truncated = prompts_of(model, tokenizer, task, examples)
    say_truncated(task, truncated, context_length(model))
    with evaluating(model), torch.inference_mode():
        answers = write_answers(model, tokenizer, prompts, task.max_new_tokens, task.stop, batch_tokens)
    return [Prediction(row, answer.strip()) for row, answer in zip(rows, answers, strict=True)]
