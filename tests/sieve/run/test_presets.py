"""`--fast` and `--best`: whole recipes by one word."""

import json

import pytest

import sieve
from sieve.errors import InputError
from sieve.run.presets import with_preset
from tests.sieve.run.test_rounds import near  # noqa: F401 (fixture)
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 (fixtures)


@pytest.mark.parametrize("name", sieve.PRESETS)
def test_presets_are_recipes(name):
    assert sieve.Recipe("smollm2", "geography", **sieve.PRESETS[name]).check()


def test_given_options_win():
    assert with_preset({"generated_tokens": 0, "tolerance": 0.1}, best=True) == {
        **sieve.PRESETS["best"],
        "generated_tokens": 0,
        "tolerance": 0.1,
    }
    assert with_preset({"rounds": 2}) == {"rounds": 2}


@pytest.mark.parametrize(
    ("given", "presets", "words"),
    [
        ({}, {"fast": True, "best": True}, "give one of them"),
        ({"method": "wanda"}, {"best": True}, "--best chooses the method"),
        ({"search": "ga"}, {"fast": True}, "--fast chooses the search"),
    ],
)
def test_contradictions_are_refused(given, presets, words):
    with pytest.raises(InputError, match=words):
        with_preset(given, **presets)


@pytest.mark.parametrize("name", sieve.PRESETS)
def test_the_command_runs_them_and_the_folder_lists_their_options(run, world, near, tmp_path, name):  # noqa: F811
    given = [*options(world, tmp_path / "out")]
    given[given.index(world.task)] = near
    own = {"best": {"generated_tokens": 64, "heal_steps": 3, "rounds": 2}, "fast": {"calibration_tokens": 256}}[name]
    more = [word for option, value in own.items() for word in (f"--{option.replace('_', '-')}", value)]
    code, out, err = run(*given, f"--{name}", *more, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert 0 < report["parameters"]["prunable_removed"] < 1
    recipe = sieve.Recipe.load(tmp_path / "out" / "recipe.yaml").to_dict()
    wanted = {**sieve.PRESETS[name], **own}
    assert {option: recipe[option] for option in wanted} == wanted
