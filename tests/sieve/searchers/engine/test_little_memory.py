"""A search on a device whose memory is too small for its passes: the same scores, costs, journal and winner.

In float64, so that what rounding changes is far smaller than any difference that matters.
"""

import json

import numpy as np
import pytest

from sieve.models.decoder import decoder_blocks
from sieve.searchers.run import run_search
from tests.sieve.models.test_halving import small_memory
from tests.sieve.searchers.engine.test_cuda_graphs import Recorder, mixed_plans
from tests.sieve.searchers.engine.test_engine import (
    EXAMPLES,
    TOKENIZER,
    deep_model,
    drawn_plans,
    engine_of,
    svd_factors,
)
from tests.tiny_models import tiny_model

ENOUGH = 1 << 30


def evaluated(model, plans, cells, rungs=(0,), **options):
    """Scores of all plans on the rungs, what they cost, and how many passes were refused."""
    with small_memory(decoder_blocks(model)[1][1], cells) as refused, engine_of(model, **options) as engine:
        scores = [one for rung in rungs for one in engine.scores(plans, rung)]
        return scores, engine.cost.summary(), len(refused)


def require_same(one, two):
    for before, after in zip(one, two, strict=True):
        assert np.array_equal(before.score, after.score)
        assert np.allclose(before.loglik, after.loglik, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [True, False])
def test_one_candidate_at_a_time(layers):
    """Also where passes begin at stored states, and leave some."""
    model = deep_model(4).double()
    plans, options = drawn_plans(model, 4), {"layers": layers, "examples": EXAMPLES[:32], "rungs": (0, 1)}
    want, cost, _ = evaluated(model, plans, ENOUGH, **options)
    got, spent, refused = evaluated(model, plans, 100, **options)
    assert refused
    assert cost == spent
    assert cost["saved_by"]["layers"] > 0 or not layers
    require_same(want, got)


@pytest.mark.parametrize(("recorded", "cells"), [(False, 100), (False, 400), (True, 100)])
def test_candidate_batches(recorded, cells):
    """Rows are halved first, then candidates; calls of halves are recorded, too."""
    model, recorder = deep_model(3).double(), Recorder()
    plans, options = mixed_plans(model), {"candidate_batch_size": 8, "examples": EXAMPLES[:6], "number": 1}
    want, cost, _ = evaluated(model, plans, ENOUGH, **options)
    if recorded:
        options["recorder"] = lambda device: recorder
    got, spent, refused = evaluated(model, plans, cells, **options)
    assert refused
    assert cost == spent
    assert (recorder.replays > 0) == recorded
    require_same(want, got)


def test_candidates_are_halved_where_rows_cannot_be():
    """And what did not fit is not tried again."""
    model, together, shapes = tiny_model("llama").double(), [], []
    plans, options = mixed_plans(model, 11), {"candidate_batch_size": 8, "number": 1, "examples": EXAMPLES[:6]}
    block = decoder_blocks(model)[1][0]
    note = block.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[:2]))
    want, cost, _ = evaluated(model, plans, ENOUGH, **options)
    note.remove()
    longest = max(tokens for rows, tokens in shapes if rows % 8 == 0)
    with small_memory(decoder_blocks(model)[1][1], 2 * longest) as refused, engine_of(model, **options) as engine:
        elastic = engine._evaluator.elastic
        whole = elastic.set_batch
        elastic.set_batch = lambda plans: (together.append(len(plans)), whole(plans))
        got = engine.scores(plans, 0)
        assert engine.cost.summary() == cost
    assert refused
    assert together[:3] == [8, 4, 2]
    assert (together.count(8), together.count(4)) == (1, 1)
    require_same(want, got)


@pytest.mark.parametrize("searcher", ["budget", "ga"])
def test_the_same_search(searcher, world, tmp_path):
    """Plan, costs, and a journal with which a search goes on that has memory."""
    model, found = tiny_model("llama").double(), []
    given = {"rank_multiple": 4} | ({"population": 4, "generations": 2, "offspring": 6} if searcher == "ga" else {})
    factors = svd_factors(model)
    for cells in (ENOUGH, 120):
        path = tmp_path / f"{cells}.txt"
        with small_memory(decoder_blocks(model)[1][1], cells) as refused:
            found.append(run_search(model, TOKENIZER, factors, world.task, 0.4, searcher, journal=path, **given))
    assert refused
    # The journal of the disturbed search serves the undisturbed one.
    found.append(run_search(model, TOKENIZER, factors, world.task, 0.4, searcher, journal=path, **given))
    assert found[0].plan == found[1].plan == found[2].plan
    assert found[0].cost == found[1].cost
    assert [one.plan for one in found[0].evaluated] == [one.plan for one in found[1].evaluated]
    one, two = (lines(tmp_path / f"{cells}.txt") for cells in (ENOUGH, 120))
    assert [line.get("key") for line in one] == [line.get("key") for line in two]
    assert [line.get("cost") for line in one] == [line.get("cost") for line in two]


def lines(path):
    return [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()]
