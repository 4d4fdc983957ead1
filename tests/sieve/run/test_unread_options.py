"""No option is ignored: what a run does not read is refused before any work, in one line that names it."""

import itertools
import re

import pytest

from sieve.compression.low_rank.methods import LOW_RANK
from sieve.errors import InputError, UnreadOption
from sieve.registry import method_named, searchable
from sieve.run.recipe import Recipe, recipe_options
from sieve.searchers.algorithms.base import SEARCHERS
from sieve.searchers.run import run_search
from sieve.utils.progress import Event
from tests.sieve.test_cli import own_cache, run  # noqa: F401 - fixtures

METHODS, GENETIC, MANY = searchable(), ("ga", "pareto"), ("budget", "ga", "pareto")
PAIRS = tuple(name for name in METHODS if method_named(name).makes is LOW_RANK)
MASKS = tuple(name for name in METHODS if name not in PAIRS)
FED = tuple(name for name in MASKS if name != "magnitude")
TASK_AWARE = {"task_aware": True}
HEALED = {"heal": True}
# Option → a value that asks for something, other options that this needs, and the methods and searchers that read it.
READERS = {
    "model": ("n", {}, METHODS, SEARCHERS),
    "task": ("u", {}, METHODS, SEARCHERS),
    "seed": (3, {}, METHODS, SEARCHERS),
    "calibration_tokens": (800, {}, METHODS, SEARCHERS),
    "generated_tokens": (400, {}, METHODS, SEARCHERS),
    "tolerance": (0.2, {}, METHODS, SEARCHERS),
    "margin": (True, {}, METHODS, SEARCHERS),
    "confident": (True, {}, METHODS, SEARCHERS),
    "allow_no_signal": (True, {}, METHODS, SEARCHERS),
    "rank_multiple": (4, {}, METHODS, SEARCHERS),
    "trim_vocabulary": (True, {}, METHODS, SEARCHERS),
    "heal": (True, {}, METHODS, SEARCHERS),
    "heal_steps": (3, HEALED, METHODS, SEARCHERS),
    "rounds": (2, HEALED, PAIRS, SEARCHERS),
    "unlabelled": ("more.jsonl", HEALED, METHODS, SEARCHERS),
    "pivot": (False, {}, PAIRS, SEARCHERS),
    "shrinkage": ("auto", {}, ("output_aligned", "loss_aware", "widths", "pca", "svd_llm"), SEARCHERS),
    "shared_input": (True, {}, PAIRS, SEARCHERS),
    "refit": (True, {}, PAIRS, SEARCHERS),
    "quantize": ("int8", {}, PAIRS, SEARCHERS),
    "pattern": ("2:4", {}, MASKS, SEARCHERS),
    "compare": ("layer", {}, MASKS, SEARCHERS),
    "task_aware": (True, {}, FED, SEARCHERS),
    "tau": (0.3, TASK_AWARE, FED, SEARCHERS),
    "fusion": ("max", TASK_AWARE, FED, SEARCHERS),
    "task_share": (0.3, TASK_AWARE, FED, SEARCHERS),
    "general": ("news.yaml", TASK_AWARE, FED, SEARCHERS),
    "ramp": (0.1, {}, FED, SEARCHERS),
    "damping": (0.1, {}, ("sparsegpt",), SEARCHERS),
    "kept": (0.5, {}, METHODS, SEARCHERS),
    "objective": ("bytes", {}, PAIRS, MANY),
    "granularity": ("block", {}, METHODS, MANY),
    "bottlenecks": (2, {}, METHODS, MANY),
    "memory": (1 << 20, {}, METHODS, MANY),
    "layers": (False, {}, METHODS, SEARCHERS),  # a switch that is off asks for nothing
    "racing": (False, {}, METHODS, SEARCHERS),
    "surrogate": (False, {}, METHODS, ("uniform", *GENETIC)),
    "workers": (2, {}, METHODS, GENETIC),
    "population": (4, {}, METHODS, GENETIC),
    "offspring": (4, {}, METHODS, GENETIC),
    "generations": (4, {}, METHODS, GENETIC),
    "budget": (4, {}, METHODS, GENETIC),
    "paper": (True, {}, METHODS, ("ga",)),
    "dtype": ("float32", {}, METHODS, SEARCHERS),
    "device": ("cpu", {}, METHODS, SEARCHERS),
    "memory_limit": ("4GiB", {}, METHODS, SEARCHERS),
}
CHOOSING = {"method", "search"}
# Options of which the one before the colon makes the other meaningless.
CONTRADICTIONS = {
    "margin": {"kept": 0.5},
    "confident": {"kept": 0.5},
    "memory": {"layers": False},
    "tau": {"method": "wanda"},
    "fusion": {"method": "ria"},
    "task_share": {"method": "wanda", "task_aware": True, "fusion": "max"},
    "general": {"method": "sparsegpt"},
    "heal_steps": {},
    "rounds": {},
    "unlabelled": {},
    "objective": {"search": "uniform"},
    "compare": {"method": "wanda", "pattern": "2:4"},
    "ramp": {"method": "wanda", "pattern": "4:8"},
}


def recipe(**values) -> Recipe:
    return Recipe.from_dict({"model": "m", "task": "t"} | values)


def refusal(**values) -> str:
    with pytest.raises(InputError) as caught:
        recipe(**values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_option_is_here():
    assert READERS.keys() | CHOOSING == recipe_options().keys()
    for name, (value, *_) in READERS.items():
        assert value != recipe_options()[name].default, name


@pytest.mark.parametrize("name", READERS)
def test_methods_and_searchers_that_do_not_read_it(name):
    value, others, readers, searchers = READERS[name]
    for method, search in itertools.product(METHODS, SEARCHERS):
        if search == "budget" and method in MASKS:  # refused without any option
            continue
        values = {"method": method, "search": search, name: value}
        if method in readers and search in searchers:
            assert getattr(recipe(**values, **others), name) == value
        else:
            assert name.replace("_", "-") in refusal(**values, **(others if method in readers else {})), values


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_options_that_leave_another_without_a_meaning(name):
    assert recipe_options()[name].flag in refusal(**CONTRADICTIONS[name], **{name: READERS[name][0]})
    assert "--tau" in refusal(method="wanda", task_aware=True, fusion="concatenate", tau=0.3)


def test_what_still_has_a_meaning():
    assert recipe(method="sparsegpt", task_aware=True, fusion="max", task_share=0.3).task_share == 0.3
    assert recipe(method="wanda", task_aware=True, fusion="max", task_share=0.3, ramp=0.1).ramp == 0.1
    assert recipe(kept=0.5, heal=True, rounds=2, confident=True).confident
    assert recipe(search="uniform", kept=0.5, objective="latency").objective == "latency"
    assert recipe(search="uniform", bottlenecks=0).bottlenecks == 0


def test_the_searchers_that_read_it_are_named():
    assert refusal(search="uniform", population=4) == (
        "--population is for --search ga or pareto, and --search uniform does not read it: leave it out, or use "
        "--search ga"
    )
    assert "--search budget or ga or pareto" in refusal(search="uniform", granularity="block")
    assert "is for --search ga or pareto" in refusal(method="wanda", granularity="block")  # uniform, by default


def test_a_search_refuses_it_in_python_too():
    with pytest.raises(UnreadOption, match="--generations is for"):
        run_search(None, None, FakeSpace(), "geography", search="budget", generations=3)
    with pytest.raises(UnreadOption, match="--margin is for the tolerance"):
        run_search(None, None, FakeSpace(), "geography", kept=0.5, margin=True)


class FakeSpace:
    traits = LOW_RANK


def test_files_that_sieve_wrote_are_still_read(tmp_path, monkeypatch):
    """They list all options; earlier versions ignored some of them."""
    notes: list[Event] = []
    monkeypatch.setattr("sieve.utils.progress.emit", notes.append)
    path = tmp_path / "recipe.yaml"
    written = recipe().to_dict()
    text = "".join(f"{name}: {'null' if value is None else value}\n" for name, value in written.items())
    path.write_text(re.sub("search: null", "search: uniform", re.sub("generations: null", "generations: 3", text)))
    assert Recipe.load(path) == recipe(search="uniform")
    assert len(notes) == 1
    assert "generations is not read: --generations is for --search ga or pareto" in notes[0].text
    assert Recipe.load(path, search="ga").generations == 3
    with pytest.raises(UnreadOption, match="--population"):
        Recipe.load(path, population=4)
    path.write_text("model: m\ntask: t\nsearch: uniform\ngenerations: 3\n")  # by hand
    with pytest.raises(UnreadOption, match="--generations"):
        Recipe.load(path)


@pytest.mark.parametrize("format", ["pivoted", "plain"])
def test_a_format_of_pairs_for_masks(run, tmp_path, format):  # noqa: F811
    given = ("prune", "smollm2", "--task", "geography", "--output", tmp_path / "out", "--method", "wanda")
    code, out, err = run(*given, "--format", format)
    assert (code, out) == (2, "")
    assert err.endswith("--format is for pairs only, and wanda makes masks: leave it out\n")
