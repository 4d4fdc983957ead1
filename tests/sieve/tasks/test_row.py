"""What a field may hold."""

import pytest

from sieve.errors import InputError
from sieve.tasks import Task
from sieve.tasks.row import Row, flat

REFUSED = [None, float("nan"), 10**5000, "\ud800", b"\xff", {}, {"a": 1}, [None], [{}], ["x", [b"\xff"]], [10**5000]]


@pytest.mark.parametrize("value", REFUSED, ids=range(len(REFUSED)))
def test_refused_in_one_line(value):
    with pytest.raises(InputError, match="x row 3") as caught:
        Row({"a": value}, "x row 3").field("a")
    assert "'a'" in str(caught.value)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "want"),
    [("é", "é"), (b"\xc3\xa9", "é"), (3, 3), (True, True), (["a", b"b"], ["a", "b"]), (("a", 1), ["a", 1]), ([], [])],
)
def test_read(value, want):
    assert Row({"a": value}, "").field("a") == want


@pytest.mark.parametrize(("value", "blank"), [(None, True), (" \n", True), (b" ", True), ("x", False), (0, False)])
def test_blank(value, blank):
    assert Row({"a": value}, "").is_blank("a") is blank


def test_names_with_dots_have_an_end():
    deep = {"x": 1}
    for _ in range(500):
        deep = {"x": deep}
    assert len(flat(deep)) < 20


HOSTILE = [
    None,
    True,
    -1,
    2,
    10**5000,
    float("inf"),
    "",
    "A",
    "\0",
    "\ud800",
    "a" * 10**5,
    [],
    [[]],
    [None],
    {},
    b"\xff",
]


@pytest.mark.parametrize("kind", ["multiple_choice", "generation", "perplexity"])
@pytest.mark.parametrize("field", ["text", "label", "options"])
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_any_value_anywhere_is_read_or_refused_in_one_line(kind, field, value):
    rows = [{"text": f"t{i}", "label": i % 2, "options": ["x", "y"]} for i in range(20)]
    rows[7][field] = value
    keys = {"multiple_choice": {"choices": "options", "answer": "label"}, "generation": {"answer": "label"}}
    task = Task("t", kind, rows, "{text}", group="label", **keys.get(kind, {}))
    message = ""
    try:
        assert all(task.splits().values())
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 400
