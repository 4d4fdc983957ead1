"""What a run asks of its model before any long work."""

from transformers import PreTrainedModel

from sieve.checkpoint.hf_quantizer import SieveConfig
from sieve.compression.methods import plannable
from sieve.errors import InputError
from sieve.models.prunable_model import PrunableModel
from sieve.run.recipe import Recipe
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.reach import multiple_for, require_plans


def require_dense(model: PreTrainedModel, source: str) -> None:
    """InputError for a pruned model: the tolerance is relative to the dense one, so it would have no meaning."""
    config = getattr(model.config, "quantization_config", None)
    if isinstance(config, SieveConfig) and config.is_pruned:
        raise InputError(
            f"{source} is pruned already: prune the model that it was made from (to remove more, with a larger "
            "--tolerance), or look at it with `sieve info`"
        )


def require_reachable_plans(recipe: Recipe, model: PrunableModel) -> None:
    """InputError if nothing can be pruned, or less than the recipe asks for."""
    matrices = plannable(model, recipe.method, recipe.method_config())
    multiple = multiple_for(model.device, recipe.rank_multiple)
    require_plans(matrices, searcher_named(recipe.searcher), recipe.options(), multiple, model.dtype)
