"""Lessons from the labels: the right answers of the calibration rows, in the form of a teacher's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sieve.healing.rows import Question, questions_of
from sieve.healing.teacher import (
    MOST_HELD_BACK,
    Lesson,
    Lessons,
    count_skipped,
    require_rows,
    training_and_held_back,
    with_targets,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sieve.tasks import Example, Task

# Log-probability of a wrong choice: not infinite, because differences of infinities are NaN.
_NEVER = -1e4


def label_lessons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    most: int,
    held_back: int = MOST_HELD_BACK,
) -> Lessons:
    """Lessons whose KL is the negative log-likelihood of the right answer, among the choices or at its tokens.

    Args: those of `teach`; `model` only gives the context length.
    """
    require_rows(task, examples)
    parts = training_and_held_back(examples, most, held_back)
    found = [questions_of(model, tokenizer, task, part, labels=True) for part in parts]
    with_targets(task, found)
    made = []
    for part, asked, limit in zip(parts, found, (most, held_back), strict=True):
        right = [one.answer for one in part] if task.type == "multiple_choice" else [0] * len(asked)
        lessons = [_lesson(one, answer) for one, answer in zip(asked, right, strict=True) if one is not None]
        made.append(lessons[:limit])
    return Lessons(*made, count_skipped(found), [], [], "tuned")


def _lesson(question: Question, right: int) -> Lesson:
    """The lesson of one question. right: the number of the right ending."""
    tokens = torch.tensor([token for ending in question.endings for token in ending])
    owners = torch.tensor([number for number, ending in enumerate(question.endings) for _ in ending])
    judged = torch.full((len(question.endings),), _NEVER)
    judged[right] = 0
    return Lesson(question, tokens[:, None], torch.zeros(len(tokens), 1), judged, owners == right)
