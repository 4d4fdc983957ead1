"""The main job on the embedded model and task, small: what the pruned model still knows."""

import numpy as np
import pytest
import torch

import sieve
from sieve.calibration.statistics import Source, Statistics
from sieve.compression.plan import Plan
from sieve.evaluation.scoring import evaluate
from sieve.models.linears import prunable

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smollm2():
    return sieve.load_model("smollm2", "bfloat16", "cpu")


def test_pruned_for_geography_it_still_knows_geography(smollm2):
    """4,096 calibration tokens; against the dense model, and against pruning that knows nothing of the task."""
    model, tokenizer = smollm2
    task = sieve.load_task("geography")
    examples = task.splits()["validation"][:100]
    dense, few = (evaluate(model, tokenizer, task, some) for some in (examples, examples[:20]))
    assert 0.65 < dense.accuracy < 0.9

    statistics = sieve.calibrate(model, tokenizer, task, tokens=4096)
    factors = sieve.project(model, statistics)
    matrices = prunable(model)
    assert sum(matrix.parameters for matrix in matrices.values()) == 106_168_320
    plan = Plan.uniform(matrices.values(), 0.6, 8)
    with factors.elastic(model) as elastic:
        elastic.set_plan(plan)
        ours = evaluate(model, tokenizer, task, examples)
    blind = sieve.project(model, _without_task(statistics))
    with blind.elastic(model) as elastic:
        elastic.set_plan(plan)
        svd = evaluate(model, tokenizer, task, examples)
    assert ours.accuracy > dense.accuracy - 0.2
    assert ours.mean_loglik > svd.mean_loglik + 1
    assert np.array_equal(evaluate(model, tokenizer, task, examples[:20]).loglik, few.loglik)  # dense again, same bits


def _without_task(statistics):
    """The same statistics of white noise: what is left is the SVD of the weights."""
    grams = {"narrow": torch.eye(576), "wide": torch.eye(1536)}
    sources = {name: Source("input", "wide" if "down_proj" in name else "narrow") for name in statistics.sources}
    return Statistics(grams, sources, statistics.tokens)
