"""The compressed forms of a run's matrices, as far as its searcher will ask for them."""

import torch

from sieve.calibration.statistics import Statistics
from sieve.compression.methods import compress, plannable
from sieve.compression.space import CompressionSpace
from sieve.models.prunable_model import PrunableModel
from sieve.run.recipe import Recipe
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.reach import largest_ranks, multiple_for


def compressed(
    recipe: Recipe,
    model: PrunableModel,
    statistics: Statistics,
    general: Statistics | None = None,
    release: bool = True,
) -> CompressionSpace:
    """All plans that the recipe's searcher can make of the model. `release`: as for `sieve.compression.methods`."""
    config, largest = recipe.method_config(), asked_ranks(recipe, model, model.device)
    return compress(model, statistics, recipe.method, config, general, recipe.own_options(), largest, release)


def asked_ranks(recipe: Recipe, model: PrunableModel, device: torch.device) -> dict[str, int]:
    """The largest rank of each matrix that a plan can have; known from the matrices' shapes."""
    matrices = plannable(model, recipe.method, recipe.method_config())
    return largest_ranks(matrices, searcher_named(recipe.searcher), multiple_for(device, recipe.rank_multiple))
