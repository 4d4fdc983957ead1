"""Values in messages: bounded in length and in cost."""

import tracemalloc

import pytest

from sieve.utils.messages import listed, one_line, shorten


def bomb(levels=9):
    value = ["lol"] * 9
    for _ in range(levels):
        value = [value] * 9
    return value


@pytest.mark.parametrize("value", ["text", 3, -2.5, None, True, [1, "a"], {"a": (1, 2)}, b"x", float("nan")])
def test_small_values_as_they_are(value):
    assert shorten(value) == repr(value)


HUGE = [bomb(), {"a": bomb()}, "x" * 10**7, b"x" * 10**7, [0] * 10**6, 10**9999, -(10**9999), [10**9999]]


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
def test_large_values_in_few_characters_and_little_memory(value):
    tracemalloc.start()
    text = shorten(value, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(text) <= 50
    assert peak < 100_000


def test_a_value_that_contains_itself():
    value = []
    value.append(value)
    assert len(shorten(value)) <= 60


def test_one_line():
    assert "\n" not in shorten("a\nb")
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 10**6))) <= 300


def test_listed():
    assert listed(["a", 3]) == "a, 3"
    assert listed(map(str, range(100)), 2) == "0, 1, … (100 in all)"
    assert len(listed(["x" * 10**6])) < 100
