"""`--fast` and `--best`: whole recipes by one word."""

import json

import pytest

import sieve
from sieve.errors import InputError
from sieve.run.presets import DEFAULT, with_preset
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
    assert with_preset({"rounds": 3}) == {**sieve.PRESETS["default"], "rounds": 3}
    assert with_preset({"method": "wanda", "rounds": 2}) == {"method": "wanda", "rounds": 2}


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("given", [{"heal": "none"}, {"kept": 0.5}])
def test_there_are_no_rounds_without_healing_or_below_a_size_that_was_asked_for(given, best):
    found = with_preset(given, best=best)
    assert "rounds" not in found
    assert sieve.Recipe("smollm2", "geography", **found).check()


@pytest.mark.parametrize("search", ["uniform", "budget", "ga", "pareto"])
def test_every_searcher_goes_with_the_default(search):
    found = with_preset({"search": search})
    assert "bottlenecks" not in found
    assert sieve.Recipe("smollm2", "geography", **found).check()


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
    given = [*options(world, tmp_path / "out")][:-2]
    given[given.index(world.task)] = near
    own = {
        "best": {"generated_tokens": 64, "heal_steps": 3, "rounds": 2},
        "default": {"heal_steps": 3},
        "fast": {"calibration_tokens": 256},
    }[name]
    more = [word for option, value in own.items() for word in (f"--{option.replace('_', '-')}", value)]
    chosen = [] if name == DEFAULT else [f"--{name}"]
    code, out, err = run(*given, *chosen, *more, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert 0 < report["parameters"]["prunable_removed"] < 1
    recipe = sieve.Recipe.load(tmp_path / "out" / "recipe.yaml").to_dict()
    wanted = {**sieve.PRESETS[name], **own}
    if wanted.get("heal") == "auto":
        wanted["heal"] = "label-free"
    assert {option: recipe[option] for option in wanted} == wanted


def test_the_help_says_what_the_default_is(run):  # noqa: F811
    words = (
        f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')} {value}"
        for name, value in sieve.PRESETS[DEFAULT].items()
    )
    assert f"what you do not give is {' '.join(words)}, which" in " ".join(run("prune", "--help")[1].split())
