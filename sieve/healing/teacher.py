"""The dense model's predictions for the calibration rows, computed once and kept: the lessons of a pruned model.

At each predicted token only the log-probabilities of the likeliest tokens are kept; the others count as one token. This
is exact for small vocabularies, and takes a hundredth of the memory for large ones.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sieve.errors import InputError
from sieve.healing.forward import packs, predict
from sieve.healing.rows import Question, in_passes, questions_of
from sieve.models.halving import in_halves
from sieve.models.loading import evaluating
from sieve.tasks import Example, Task
from sieve.utils import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Number of likeliest tokens whose probability is kept.
TOP = 256
# Fewest calibration rows for healing.
FEWEST = 32
# One row in 8 is held back, at most 256 rows.
_HELD_BACK, MOST_HELD_BACK = 8, 256


@dataclass(frozen=True)
class Lesson:
    """A question and its target predictions.

    top: int64 [targets, k], the likeliest tokens at each target; logprobs: float32 [targets, k], theirs.
    judged: float32 [endings], as the task compares them.
    counts: bool [targets], the targets to learn from: all of a teacher's; for labels those of the right answer.
    """

    question: Question
    top: torch.Tensor
    logprobs: torch.Tensor
    judged: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True)
class Lessons:
    """training, held_back: disjoint parts of the calibration split; rows of one group are in one part.

    kind: where the lessons come from: the dense model ("label-free") or the labels ("tuned").

    skipped: rows that have nothing to predict.
    taught: the examples of all lessons with choices. answers: the teacher's choice for each of them.
    """

    training: list[Lesson]
    held_back: list[Lesson]
    skipped: int
    taught: list[Example]
    answers: list[int]
    kind: str = "label-free"


def teach(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    most: int,
    held_back: int = MOST_HELD_BACK,
    unlabelled: Sequence[Example] = (),
) -> Lessons:
    """The teacher's predictions for the calibration rows; labels are not read.

    Args:
        examples: the calibration split.
        unlabelled: rows to learn from after those of the split; none of them is held back.
        most, held_back: numbers of rows that will be used; further ones are ignored.

    Raises: InputError for fewer than `FEWEST` rows.
    """
    require_rows(task, examples)
    training, judged = training_and_held_back(examples, most, held_back)
    parts = [[*training, *unlabelled][:most], judged]
    with evaluating(teacher):
        found = [questions_of(teacher, tokenizer, task, part) for part in parts]
        questions = with_targets(task, found)
        every = [one for part in questions for one in part][: most + held_back]
        together = packs(teacher, every)
        training, judged = (
            _lessons(teacher, part[:limit], together) for part, limit in zip(questions, (most, held_back), strict=True)
        )
    skipped = count_skipped(found)
    taught, answers = [], []
    if task.type == "multiple_choice":
        taught = [example for part, asked in zip(parts, found, strict=True)
                  for example, one in zip(part, asked, strict=True) if one is not None]  # fmt: skip
        answers = [int(lesson.judged.argmax()) for lesson in (*training, *judged)]
    return Lessons(training, judged, skipped, taught, answers)


def training_and_held_back(examples: Sequence[Example], most: int, held_back: int) -> list[Sequence[Example]]:
    """At most so many rows to learn from, and to judge by; no group, whose rows lie side by side, is in both."""
    border = _border(examples)
    return [examples[:border][:most], examples[border:][:held_back]]


def with_targets(task: Task, found: Sequence[Sequence[Question | None]]) -> list[list[Question]]:
    """The questions of rows that have something to predict; InputError if none are left."""
    questions = [[one for one in part if one is not None] for part in found]
    if not all(questions):
        raise InputError(f"{task.where}: no calibration row has a token to predict, so there is nothing to heal by")
    return questions


def count_skipped(found: Sequence[Sequence[Question | None]]) -> int:
    """Number of rows that have nothing to predict."""
    return sum(one is None for part in found for one in part)


def require_rows(task: Task, examples: Sequence[Example]) -> None:
    """InputError where the calibration split has too few rows to heal by."""
    if len(examples) < FEWEST:
        raise InputError(
            f"{task.where}: healing needs at least {FEWEST} calibration rows, some of them held back to judge by, and "
            f"there are {len(examples)}: give the calibration split more (splits), or leave healing out"
        )


def _border(examples: Sequence[Example]) -> int:
    """The index of the first held-back row."""
    border = len(examples) - min(max(len(examples) // _HELD_BACK, FEWEST // 4), MOST_HELD_BACK)
    while border > FEWEST // 2 and examples[border - 1].group and examples[border - 1].group == examples[border].group:
        border -= 1
    return border


@torch.no_grad()
def _lessons(teacher: PreTrainedModel, questions: Sequence[Question], together: bool) -> list[Lesson]:
    lessons: dict[int, Lesson] = {}
    with progress.bar("teaching", len(questions), "rows") as advance:
        for numbers in in_passes(questions):
            asked = [questions[number] for number in numbers]

            def part(first: int, end: int, asked: list[Question] = asked) -> list[Lesson]:
                return _lessons_of_a_pass(teacher, asked[first:end], together)

            longest = max(one.length for one in asked)
            made = in_halves(teacher, len(asked), longest, part, operator.add, "teaching")
            lessons |= zip(numbers, made, strict=True)
            advance(len(numbers))
    return [lessons[number] for number in range(len(questions))]


def _lessons_of_a_pass(teacher: PreTrainedModel, asked: Sequence[Question], together: bool) -> list[Lesson]:
    predicted = predict(teacher, asked, together)
    logprobs, top = predicted.logprobs.topk(min(TOP, predicted.logprobs.shape[1]), sorted=False)
    lessons, first = [], 0
    for one, judged in zip(asked, predicted.judged, strict=True):
        own = slice(first, first + one.targets)
        lessons.append(
            Lesson(one, top[own].cpu(), logprobs[own].cpu(), judged.cpu(), torch.ones(one.targets, dtype=torch.bool))
        )
        first += one.targets
    return lessons
