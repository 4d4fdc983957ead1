"""Recipes from files and from Python: values that work, or one line that says which does not."""

from dataclasses import fields

import pytest

from sieve.errors import InputError
from sieve.run.recipe import Recipe

NAN, INFINITY = float("nan"), float("inf")
NUMBERS = [field.name for field in fields(Recipe) if "int" in str(field.type) or "float" in str(field.type)]
NONE_OF_THEM = [NAN, INFINITY, -INFINITY, -1, 2**63, 10**400, -(10**400), 10**5000, [], {}, [[0] * 1000] * 1000]


def refusal(**values) -> str:
    with pytest.raises(InputError) as caught:
        Recipe.from_dict({"model": "m", "task": "t"} | values)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("value", NONE_OF_THEM, ids=range(len(NONE_OF_THEM)))
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_cannot_be_used(name, value):
    method = "wanda" if name in ("tau", "task_share", "ramp", "damping") else "output_aligned"
    refusal(**{name: value, "method": method})


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
@pytest.mark.parametrize("value", [["x"] * 10**5, {"x": ["x"] * 10**5}, b"x" * 10**6])
def test_values_of_other_types_are_shortened(name, value):
    assert name in refusal(**{name: value})


@pytest.mark.parametrize("tolerance", [1e-300, 5e-324, 1e-7])
def test_a_tolerance_that_no_examples_resolve(tolerance):
    assert "the tolerance must be 0, or from 1e-06 to below 1" in refusal(tolerance=tolerance)
    assert Recipe("m", "t", tolerance=0).check().tolerance == 0


@pytest.mark.parametrize("seed", [-1, -(2**70), 2**32])
def test_seeds(seed):
    assert "the seed must be a whole number from 0 to 4,294,967,295" in refusal(seed=seed)
    assert Recipe("m", "t", seed=2**32 - 1).check().seed == 2**32 - 1


def test_too_few_calibration_tokens_are_found_at_once():
    assert "--calibration-tokens must be at least 256" in refusal(calibration_tokens=255)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[]", r"must be a mapping of options, got \[\]"),
        ("", "must be a mapping of options, got None"),
        ("3", "must be a mapping"),
        ("[" * 100_000, "nested more than 50 levels"),
        ("&r {model: *r}", "stands inside what it names"),
        ("{model: a, model: b}", "stands twice"),
        ("{model: a, task: b, 3: c}", "unknown key 3"),
        ("{model: a, task: b, seed: -9999999999999999999999}", "the seed must be"),
        ("{model: a, task: b, tolerance: .nan}", "tolerance must be a finite number"),
        ("{model: {}, task: b}", "model must be of type"),
        ("{model: null, task: b}", "model must be of type"),
        ("{task: b}", "no model given"),
    ],
)
def test_damaged_files(tmp_path, content, part):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=part) as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value)


def test_written_by_windows(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: m\r\ntask: t\r\nseed: 3\r\n")
    assert Recipe.load(path) == Recipe("m", "t", seed=3)
