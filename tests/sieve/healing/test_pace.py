"""What a healing reads: bounded in tokens, whatever the length of the rows."""

from types import SimpleNamespace

import pytest

from sieve.healing.heal import lessons_of
from sieve.healing.pace import FEWEST_ROWS, ROWS, STEPS, TOKENS, pace, rows_to_teach
from sieve.healing.rows import WINDOW
from sieve.healing.teacher import FEWEST, MOST_HELD_BACK
from tests.sieve.healing.test_healing import TOKENIZER, task_of
from tests.tiny_models import tiny_model


def lessons(length, number=2000):
    return [SimpleNamespace(question=SimpleNamespace(length=length))] * number


@pytest.mark.parametrize("length", [1, 22, 40, 41, 100, 300, 511, 2000, 8000])
def test_steps_read_a_bounded_number_of_tokens(length):
    steps, rows = pace(lessons(length))
    assert FEWEST_ROWS <= rows <= ROWS
    assert 1 <= steps <= STEPS
    assert steps * rows * length <= TOKENS
    # What is allowed is used, except where rows are short.
    assert steps == STEPS or (steps + 1) * rows * length > TOKENS


def test_rows_of_common_lengths():
    assert pace(lessons(22)) == (50, 32)
    assert pace(lessons(22, number=300)) == (18, 32)
    assert pace(lessons(80)) == (50, 16)
    assert pace(lessons(350)) == (23, 8)
    assert pace(lessons(350, number=80)) == (20, 8)


@pytest.mark.parametrize("kind", ["multiple_choice", "generation", "perplexity"])
def test_long_rows_need_fewer_of_them(kind, monkeypatch):
    task = task_of(kind)
    examples = task.splits()["calibration"]
    assert rows_to_teach(TOKENIZER, task, examples, 3) == (3 * ROWS, MOST_HELD_BACK)
    assert rows_to_teach(TOKENIZER, task, examples, None) == (STEPS * ROWS, MOST_HELD_BACK)
    # The number of rows is that of the tokens that they have.
    found = lessons_of(tiny_model("llama"), TOKENIZER, task, examples)
    length = sum(lesson.question.length for lesson in found.training) / len(found.training)
    monkeypatch.setattr("sieve.healing.pace.TOKENS", int(200 * length))
    most, held_back = rows_to_teach(TOKENIZER, task, examples, None)
    assert 0.4 * 200 <= most <= 1.2 * 200
    assert held_back == max(most // 4, FEWEST)


def test_windows_stand_for_long_texts():
    task = task_of("perplexity", rows=[{"q": f"{i} " + "word " * 3000, "land": "x"} for i in range(90)])
    most, _ = rows_to_teach(TOKENIZER, task, task.splits()["calibration"], None)
    assert most == TOKENS // WINDOW
