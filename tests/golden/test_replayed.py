"""Results of today's code, replayed: reorganising it changes none of them.

Everywhere: factors, models and saved folders, up to rounding. Bits, plans of searches and the report, which near ties
decide, only on the kind of machine that golden.json was written on. New keys may be added.
"""

import json

import pytest
import torch

import sieve
from sieve.run.recipe import Recipe
from tests.golden.replay import FAMILIES, FOLDERS, GOLDEN, HERE, RUNS, SEARCHES, family, logits, machine, run, searched

WANTED = json.loads(GOLDEN.read_text())
SAME = machine() == WANTED["machine"]
here_only = pytest.mark.skipif(not SAME, reason="golden.json was written on another kind of machine")


def differences(wanted, got, place="", rel=1e-3) -> list[str]:
    """What was lost or changed, by its place; `got` may hold more. Numbers may differ by the fraction `rel`."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        lost = [f"{place}/{key} is gone" for key in wanted if key not in got]
        return lost + [
            line for key in wanted if key in got for line in differences(wanted[key], got[key], f"{place}/{key}", rel)
        ]
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        pairs = enumerate(zip(wanted, got, strict=True))
        return [line for i, (one, other) in pairs for line in differences(one, other, f"{place}/{i}", rel)]
    if isinstance(wanted, float) and isinstance(got, int | float):
        alike = got == pytest.approx(wanted, rel=rel, abs=rel)
    elif place.endswith("/bits"):
        alike = not SAME or got == wanted
    else:
        alike = got == wanted
    return [] if alike else [f"{place}: {got!r}, not {wanted!r}"]


def as_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", FAMILIES)
def test_factors_and_pruned_models(name, tmp_path):
    assert differences(WANTED["families"][name], as_json(family(name, tmp_path))) == []


@here_only
@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name, tmp_path):
    assert differences(WANTED["searches"][name], as_json(searched(name, tmp_path))) == []


@here_only
@pytest.mark.parametrize("name", RUNS)
def test_the_main_job(name, tmp_path):
    assert differences(WANTED[name], as_json(run(name, tmp_path))) == []


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_read(name):
    model, _ = sieve.load(HERE / name)
    # Processors round products of bfloat16 at different places: two steps of its numbers.
    rel = 2**-6 if model.dtype is torch.bfloat16 else 1e-3
    assert differences(WANTED["folders"][name], logits(model), rel=rel) == []


@pytest.mark.parametrize("name", FOLDERS[:4])
def test_recipes_of_version_1_are_read(name):
    recipe = Recipe.load(HERE / name / "recipe.yaml")
    assert recipe.task == "geography"
    assert recipe.method == ("wanda" if name == "masks" else "output_aligned")


def test_a_folder_of_version_2_has_every_format():
    model, _ = sieve.load(HERE / "mixed")
    config = json.loads((HERE / "mixed" / "config.json").read_text())["quantization_config"]
    assert config["version"] == 2
    assert model.config.quantization_config.to_dict() == config
    assert {layer["format"] for layer in config["layers"].values()} == {"dense", "pair", "pivoted_pair", "mask"}
    assert len(model.config.quantization_config.stacks) == 4


def test_statistics_of_version_1_are_read():
    statistics = sieve.Statistics.load(HERE / "statistics.safetensors", torch.device("cpu"))
    assert statistics.tokens > 100
    assert len(statistics.sources) == 14


def test_a_difference_shows():
    wanted = {"a": [1.0, {"b": "x"}], "c": 2}
    assert differences(wanted, {"a": [1.0, {"b": "x"}], "c": 2, "new": 0}) == []
    assert differences(wanted, {"a": [1.1, {"b": "y"}]}) == ["/c is gone", "/a/0: 1.1, not 1.0", "/a/1/b: 'y', not 'x'"]
