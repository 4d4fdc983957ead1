"""How much a healing reads: rows, rows of a step and steps, all fewer where rows are long."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

from sieve.healing.rows import WINDOW
from sieve.healing.teacher import FEWEST, MOST_HELD_BACK, Lesson
from sieve.tasks import Example, Task, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEPS = 50
# Number of lessons in one step, at least and at most.
FEWEST_ROWS, ROWS = 8, 32
# Passes over the calibration rows; with more, a model learns the rows by heart.
_EPOCHS = 2
# Most tokens that the steps of one setting read: a bound on the time.
TOKENS = 1 << 16
# A look at the held-back rows reads at most this fraction of them.
_LOOK = 4
# Rows whose lengths stand for those of all.
_SAMPLE = 64


def rows_to_teach(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], steps: int | None
) -> tuple[int, int]:
    """The most rows to learn from and to hold back. steps: as the user gave them, None for those of `pace`."""
    if steps is not None:
        return steps * ROWS, MOST_HELD_BACK
    length = mean(_length(tokenizer, task, one) for one in examples[:_SAMPLE])
    affordable = int(TOKENS / length)
    return min(STEPS * ROWS, max(affordable, FEWEST)), min(MOST_HELD_BACK, max(affordable // _LOOK, FEWEST))


def pace(lessons: Sequence[Lesson]) -> tuple[int, int]:
    """The number of steps, and of rows in each, for these lessons."""
    length = mean(lesson.question.length for lesson in lessons)
    rows = min(max(int(TOKENS / (STEPS * length)), FEWEST_ROWS), ROWS)
    return max(1, min(STEPS, _EPOCHS * len(lessons) // rows, int(TOKENS / (rows * length)))), rows


def _length(tokenizer: PreTrainedTokenizerBase, task: Task, example: Example) -> int:
    """Number of tokens of the example's row, or of a window of its text; at least 1."""
    if task.type == "multiple_choice":
        ids, _ = encode(tokenizer, task, example, "".join(example.choices))
        return max(len(ids), 1)
    if task.type == "generation":
        ids, _ = encode(tokenizer, task, example, "")
        return len(ids) + task.max_new_tokens
    ids, _ = encode(tokenizer, task, example, example.target)
    return min(max(len(ids), 1), WINDOW)
