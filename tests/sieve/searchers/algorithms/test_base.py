"""A searcher is a row and a function: recipes, checks and searches follow from them."""

import pytest

from sieve.calibration.collect import calibrate
from sieve.compression.low_rank.methods import LOW_RANK
from sieve.compression.low_rank.project import project
from sieve.compression.masks.methods import MASKING
from sieve.errors import InputError
from sieve.models.loading import load_model
from sieve.registry import implements
from sieve.run.recipe import Recipe
from sieve.searchers.algorithms.base import SEARCHERS, Searcher, searcher_named
from sieve.searchers.config import Options
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.run import run_search

TOY = Searcher("toy", "a toy", needs_surrogate=True)


@implements(TOY)
def largest(problem):
    """A toy: the largest plan that prunes anything."""
    genome = problem.genome()
    levels = genome.dense.copy()
    levels[0] -= 1
    yield problem.evaluate(genome.plan(levels))


def test_a_new_searcher_is_a_function_and_a_row(monkeypatch, world):
    monkeypatch.setitem(SEARCHERS, "toy", TOY)
    recipe = Recipe(world.model, world.task, tolerance=0.9, search="toy").check()
    assert recipe.searcher == "toy"
    with pytest.raises(InputError, match="toy search has nothing to go by"):
        Recipe(world.model, world.task, search="toy", surrogate=False).check()
    with pytest.raises(
        InputError, match="toy search goes by predicted loss of ranks, and masks have none: use uniform"
    ):
        Recipe(world.model, world.task, search="toy", method="wanda").check()
    model, tokenizer = load_model(world.model)
    factors = project(model, calibrate(model, tokenizer, world.task, tokens=800))
    found = run_search(model, tokenizer, factors, world.task, 0.9, "toy", rank_multiple=4, bottlenecks=0)
    assert len(found.evaluated) == 1
    assert sum(rank != "dense" for rank in found.plan.values()) == 1


def test_rows_are_named_as_they_say_and_unknown_names_are_refused():
    assert all(searcher.name == name and searcher.about for name, searcher in SEARCHERS.items())
    with pytest.raises(InputError, match="unknown search 'tabu': choose one of uniform, budget, ga, pareto"):
        searcher_named("tabu")


@pytest.mark.parametrize("name", SEARCHERS)
def test_default_options_serve_every_searcher_on_pairs(name):
    SEARCHERS[name].check(Options(), EngineConfig(), LOW_RANK)
    with pytest.raises(InputError, match=r"masks leave bytes as they are|masks have none"):
        SEARCHERS[name].check(Options(objective="bytes"), EngineConfig(), MASKING)
