"""Recipes from files and from Python: values that work, or one line that says which does not."""

import copy
import pickle
from dataclasses import replace

import pytest

from sieve.errors import InputError
from sieve.run.recipe import Recipe, recipe_options
from sieve.searchers.engine.config import EngineConfig
from sieve.utils.options import GROUPS, options_of

NAN, INFINITY = float("nan"), float("inf")
NUMBERS = [name for name, option in recipe_options().items() if {int, float} & set(option.types)] + ["version"]
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


@pytest.mark.parametrize("name", [*recipe_options(), "version"])
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


def test_options_are_given_and_read_by_name_wherever_they_are_in_the_tree():
    recipe = Recipe("m", "t", 0.2, "ga", kept=0.5, pivot=False, tau=0.3)
    assert recipe.goal.tolerance == recipe.tolerance == 0.2
    assert (recipe.goal.search, recipe.search_options.kept, recipe.low_rank.pivot) == ("ga", 0.5, False)
    assert recipe.masks.tau == recipe.mask_options().tau == 0.3
    assert replace(recipe, seed=3).seed == 3
    assert Recipe.from_dict(replace(recipe, tau=0.2).to_dict()) == replace(recipe, tau=0.2)
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe
    with pytest.raises(TypeError, match="no option taus"):
        Recipe("m", "t", taus=0.3)
    assert Recipe("m", "t", 0.2, "ga", "svd").method == "svd"
    for given, values in (((0.2, "ga", "svd", True), {}), ((0.2,), {"tolerance": 0.1})):
        with pytest.raises(TypeError, match="only the options tolerance, search, method may be given by position"):
            Recipe("m", "t", *given, **values)
    with pytest.raises(AttributeError, match="no option 'taus'"):
        recipe.taus  # noqa: B018


def test_names_of_options_are_unique():
    parts = [Recipe, *(type(config) for config in Recipe("m", "t").configs())]
    names = [name for part in parts for name in options_of(part)]
    assert len(names) == len(set(names)) == len(recipe_options())


def test_a_file_may_group_its_options(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\ntask: t\ngoal: {tolerance: 0.1, search: ga}\nseed: 2\n")
    assert Recipe.load(path) == Recipe("m", "t", 0.1, "ga", seed=2)
    path.write_text("model: m\ntask: t\nsearch_options: {workers: 2, kept: 0.5}\nengine: {memory: 0}\nsearch: ga\n")
    found = Recipe.load(path)  # workers as an earlier version grouped it
    assert (found.engine, found.search_options.kept) == (EngineConfig(workers=2, memory=0), 0.5)
    assert "goal must hold options of tolerance" in refusal(goal={"tau": 1})
    assert "goal must hold options of tolerance" in refusal(goal=3)


def test_every_option_can_be_explained():
    for name, option in recipe_options().items():
        assert option.help[0].isupper() or option.argument, name
        assert not option.help.endswith("."), name
        assert option.group in GROUPS, name


def test_what_is_typed_is_a_number_where_it_can_be():
    shrinkage, workers, task = (recipe_options()[name] for name in ("shrinkage", "workers", "task"))
    assert [shrinkage.read(text) for text in ("0", "0.5", "auto")] == [0.0, 0.5, "auto"]
    assert [workers.read(text) for text in ("2", "2.5", "ray://x")] == [2, "2.5", "ray://x"]
    assert task.read("3") == "3"
