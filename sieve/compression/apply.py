"""A plan onto a model, for good; `CompressionSpace` has what puts one onto it for a while."""

from collections.abc import Mapping

from transformers import PreTrainedModel

from sieve.compression.plan import Plan
from sieve.compression.space import CompressionSpace


def apply_(model: PreTrainedModel, factors: CompressionSpace, plan: Mapping[str, int | str]) -> PreTrainedModel:
    """Replace the planned matrices by their low-rank pairs, or mask their weights, in place.

    Args:
        model: the dense model that `factors` were projected from.
        factors: nested factors of every prunable matrix (`sieve.project`), or its masks (`sieve.mask`).
        plan: matrix name → rank or "dense" (`sieve.search`, or your own dict); absent means dense. If it is a
            pivoted `Plan`, the pairs are `PivotedLinear`: the same maps in fewer parameters. Of masks, the rank is
            how many weights a row keeps; modules stay what they are.

    Returns: the same model object. Of the plan of a `sieve.search` with these factors it has, bit for bit, the weights
        whose scores were confirmed on the validation split.

    Raises: InputError before anything is changed, if the plan names an unknown matrix or an impossible rank.

    Example:
        >>> pruned = sieve.apply_(model, factors, {"model.layers.0.mlp.down_proj": 96})
    """
    plan = Plan(plan)
    matrices = factors.matrices(model, plan)
    plan.check(matrices)
    factors.check(matrices, plan)
    factors.apply_(model, plan)
    return model
