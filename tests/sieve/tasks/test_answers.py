"""An answer field read as index, letter or text."""

import pytest

from sieve.errors import InputError
from sieve.tasks.answers import resolve_answers
from sieve.tasks.row import Row


def resolve(values, choices, answer_is=None):
    rows = [Row({"answer": value}, f"line {number}") for number, value in enumerate(values, 1)]
    return resolve_answers(rows, "answer", [choices] * len(rows), "task.yaml", answer_is)


@pytest.mark.parametrize(
    ("values", "choices", "want"),
    [
        ([0, 2, 1], ["a", "b", "c"], [0, 2, 1]),
        ([1.0, 0.0], ["a", "b"], [1, 0]),  # as Parquet stores a column with gaps
        (["1", "0"], ["a", "b"], [1, 0]),  # as CSV does
        (["1.0", "0.0"], ["a", "b"], [1, 0]),
        (["B", "a", "(C)", "B."], ["x", "y", "z"], [1, 0, 2, 1]),
        ([" yes", "No "], [" no", " yes"], [1, 0]),
        (["B. two", "A. one"], [" one", " two"], [1, 0]),
        (["B. two  words", "A.\nOne?"], [" one", " two words. "], [1, 0]),
        ([True, False], [" no", " yes"], [1, 0]),
        (["True", "False"], [" no", " yes"], [1, 0]),
        (["true", "0"], [" no", " yes"], [1, 0]),
        ([True, False], [" True", " False"], [0, 1]),  # the text wins over the truth
        (["A. one", "D. two"], ["one", "two"], [0, 1]),  # letters that do not begin at A
        ([7, 5], ["5", "7"], [1, 0]),  # no index
        ([7.0, 5.0], ["5", "7"], [1, 0]),
        (["1", "3"], ["4", "1", "2", "0"], [1, 3]),  # one row is no text
        ([1, 5], [" 1", " 2", " 3", " 4", " 5"], [0, 4]),  # one row is no index
        ([0, 4], [" 1", " 2", " 3", " 4", " 5"], [0, 4]),  # one row is no text
        ([0, 1], [" 0", " 1"], [0, 1]),  # both, and equal
        (["A", "B"], ["A", "B"], [0, 1]),
        (["US", "us"], [" us", " US"], [1, 0]),  # case tells the choices apart
    ],
)
def test_readings(values, choices, want):
    assert resolve(values, choices) == want


@pytest.mark.parametrize(
    ("values", "choices", "readings"),
    [
        ([4, 1, 2, 3], [" 1", " 2", " 3", " 4", " 5"], {"index": [4, 1, 2, 3], "text": [3, 0, 1, 2]}),
        ([4.0, 1.0], [" 1", " 2", " 3", " 4", " 5"], {"index": [4, 1], "text": [3, 0]}),
        (["4", "1"], [" 1", " 2", " 3", " 4", " 5"], {"index": [4, 1], "text": [3, 0]}),
        ([2, 0], ["2", "0", "1"], {"index": [2, 0], "text": [0, 1]}),
        (["1", "3"], ["3", "1", "2", "0"], {"index": [1, 3], "text": [1, 0]}),
        (["a", "b"], ["b", "a"], {"text": [1, 0], "letter": [0, 1]}),
        (["C", "A"], ["A", "C", "B"], {"text": [1, 0], "letter": [2, 0]}),
    ],
)
def test_two_readings_need_a_word(values, choices, readings):
    with pytest.raises(InputError) as caught:
        resolve(values, choices)
    message = str(caught.value)
    assert "task.yaml" in message
    assert "\n" not in message
    differing = next(i for i, answers in enumerate(zip(*readings.values(), strict=True)) if len(set(answers)) > 1)
    assert f"line {differing + 1} has {values[differing]!r}" in message
    for kind, want in readings.items():
        assert f"answer_is: {kind}" in message
        assert repr(choices[want[differing]].strip()) in message
        assert resolve(values, choices, kind) == want


def test_rows_with_choices_of_their_own():
    rows = [Row({"answer": 1}, "line 1"), Row({"answer": 2}, "line 2")]
    choices = [["0", "1", "2"], ["1", "2", "0"]]
    with pytest.raises(InputError, match="line 2 has 2; as an index from 0 it is '0', as a text it is '2'"):
        resolve_answers(rows, "answer", choices, "task.yaml")


@pytest.mark.parametrize(
    ("kind", "values", "line"),
    [("index", ["1", "A"], 2), ("text", ["x", 1], 2), ("letter", ["1", "A"], 1), ("index", [True, "y"], 2)],
)
def test_only_as_asked(kind, values, line):
    with pytest.raises(InputError, match=f"line {line}: the answer .* answer_is asks for"):
        resolve(values, ["x", "y"], kind)
    assert resolve([True, False], ["x", "y"], "index") == [1, 0]


@pytest.mark.parametrize("value", [3, -1, "D", "maybe", "B. one", 0.5, ""])
def test_none_of_the_choices(value):
    with pytest.raises(InputError) as caught:
        resolve(["A", value] if isinstance(value, str) else [0, value], ["one", "two"])
    message = str(caught.value)
    assert "task.yaml: line 2" in message
    assert repr(value) in message
    assert "'one', 'two'" in message
