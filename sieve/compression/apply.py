"""A plan onto a model: for good (`apply_`), or for a while.

`applied` is what `apply_` stores; `sliced` turns quickly from plan to plan, for a search, up to rounding.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import nn
from transformers import PreTrainedModel

from sieve.compression.plan import Plan
from sieve.compression.space import CompressionSpace, Elastic


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


def applied(
    model: PreTrainedModel, factors: CompressionSpace, plan: Mapping[str, int | str]
) -> AbstractContextManager[None]:
    """Within the block the model has the weights that `apply_` would give it, bit for bit; afterwards its own again.

    A search judges plans by slices of nested factors. What is stored of a plan is the same map but for rounding:
    pivoted, with the means in the bias, in the model's dtype. This is that form, for a look at it.

    Args:
        model: the dense model, or inside `sliced` with no plan set.
        factors, plan: as for `apply_`; whether pairs are pivoted is what the factors say.
    """
    return factors.stored(model, plan)


def sliced(model: nn.Module, factors: CompressionSpace) -> AbstractContextManager[Elastic]:
    """Within the block the model runs whatever plan was last set; afterwards it is the dense model again."""
    return factors.elastic(model)
