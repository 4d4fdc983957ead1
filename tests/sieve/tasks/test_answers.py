"""An answer field read as index, letter or text."""

import pytest

from sieve.errors import InputError
from sieve.tasks.answers import resolve_answers
from sieve.tasks.row import Row


def resolve(values, choices):
    rows = [Row({"answer": value}, f"line {number}") for number, value in enumerate(values, 1)]
    return resolve_answers(rows, "answer", [choices] * len(rows), "task.yaml")


@pytest.mark.parametrize(
    ("values", "choices", "want"),
    [
        ([0, 2, 1], ["a", "b", "c"], [0, 2, 1]),
        ([1.0, 0.0], ["a", "b"], [1, 0]),  # as Parquet stores a column with gaps
        (["1", "0"], ["a", "b"], [1, 0]),  # as CSV does
        (["B", "a", "(C)", "B."], ["x", "y", "z"], [1, 0, 2, 1]),
        ([" yes", "No "], [" no", " yes"], [1, 0]),
        (["B. two", "A. one"], [" one", " two"], [1, 0]),
        (["B. two  words", "A.\nOne?"], [" one", " two words. "], [1, 0]),
        ([True, False], [" no", " yes"], [1, 0]),
        (["True", "False"], [" no", " yes"], [1, 0]),
        ([True, False], [" True", " False"], [0, 1]),  # the text wins over the index
        (["A. one", "D. two"], ["one", "two"], [0, 1]),  # letters that do not begin at A
        (["a", "b"], ["b", "a"], [1, 0]),  # the text wins over the letter
        ([2, 0], ["2", "0", "1"], [2, 0]),  # a number is an index …
        ([7, 5], ["5", "7"], [1, 0]),  # … unless it cannot be
        (["1", "3"], ["3", "1", "2", "0"], [1, 0]),  # text that looks like a number is a text if it always can be
        (["1", "3"], ["4", "1", "2", "0"], [1, 3]),  # else an index, for all rows alike
    ],
)
def test_readings(values, choices, want):
    assert resolve(values, choices) == want


@pytest.mark.parametrize("value", [3, -1, "D", "maybe", "B. one", 0.5, ""])
def test_none_of_the_choices(value):
    with pytest.raises(InputError) as caught:
        resolve(["A", value] if isinstance(value, str) else [0, value], ["one", "two"])
    message = str(caught.value)
    assert "task.yaml: line 2" in message
    assert repr(value) in message
    assert "'one', 'two'" in message
