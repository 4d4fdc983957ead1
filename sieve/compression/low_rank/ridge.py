"""Choosing how far the loss-aware projection trusts its gradients: by the loss of held-back calibration examples."""

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from sieve.calibration.gradients import answer_loss
from sieve.calibration.statistics import Statistics
from sieve.calibration.text import batches
from sieve.compression.low_rank.elastic import elastic_pairs
from sieve.compression.low_rank.factors import Factors
from sieve.compression.plan import Plan
from sieve.models.loading import evaluating
from sieve.models.matrix import Matrix
from sieve.models.prunable_model import PrunableModel
from sieve.utils import progress

RIDGES = (math.inf, 10.0, 1.0, 0.1)
"""Candidates, from the output-aligned projection to one that nearly ignores what the gradients do not see."""

KEPT = 0.5
"""Matrices are cut to this fraction for the comparison …"""

EVERY = 3
"""… in every third block: that tells candidates apart as well, and a candidate costs a third of a projection."""

_BATCH_TOKENS = 4096


def choose_ridge(
    model: PreTrainedModel | PrunableModel,
    statistics: Statistics,
    matrices: dict[str, Matrix],
    factors_at: Callable[[float, dict[str, int]], Factors],
) -> float:
    """The ridge with the least loss on `statistics.held_back` of the model with every third block pruned to KEPT.

    Tried from large to small until the loss grows. factors_at: ridge and rank per matrix → factors of those ranks.
    """
    plan = Plan.uniform((matrix for matrix in matrices.values() if matrix.block % EVERY == 0), KEPT)
    best, least = math.inf, math.inf
    for ridge in RIDGES:
        loss = _loss(PrunableModel.of(model), statistics, factors_at(ridge, plan.ranks()), plan)
        progress.say(f"  ridge {ridge:g}: {loss:.4f} nats on held-back calibration examples")
        if not loss < least:  # so that NaN never wins
            break
        best, least = ridge, loss
    return best


@torch.inference_mode()
def _loss(model: PrunableModel, statistics: Statistics, factors: Factors, plan: Plan) -> float:
    """Mean loss per held-back example, in nats."""
    with evaluating(model.model), elastic_pairs(model, factors) as elastic:
        elastic.set_plan(plan)
        losses = [answer_loss(model.model, batch) for batch in batches(statistics.held_back, _BATCH_TOKENS)]
    return float(torch.stack(losses).sum()) / len(statistics.held_back)
