"""Several candidates in one forward pass against each by itself: the same answers, likelihoods within rounding."""

import numpy as np
import pytest
import torch

from sieve.evaluation.scoring import prepare
from sieve.models.linears import prunable
from sieve.models.loading import evaluating
from sieve.searchers.engine.journal import Journal
from sieve.tasks import Example, Task
from tests.sieve.evaluation.test_scoring import choice_task
from tests.sieve.searchers.engine.test_engine import (
    EXAMPLES,
    TASK,
    TOKENIZER,
    deep_model,
    drawn_plans,
    engine_of,
    svd_factors,
)
from tests.tiny_models import TINY, tiny_model, tiny_tokens


def close(one, two):
    """Log-likelihoods within 1e-4 nats, the same answers."""
    return np.allclose(one.loglik, two.loglik, rtol=0, atol=1e-4) and np.array_equal(one.score, two.score)


@pytest.mark.parametrize("name", TINY)
def test_each_part_of_the_rows_runs_its_own_candidate(name):
    """Also where some, or all, leave a matrix dense."""
    model, ids = tiny_model(name), tiny_tokens(rows=3)
    plans = [*drawn_plans(model, 4), {}]
    with svd_factors(model).elastic(model) as elastic, torch.inference_mode():
        want = []
        for plan in plans:
            elastic.set_plan(plan)
            want.append(model(ids).logits)
        elastic.set_batch(plans)
        got = model(ids.repeat(len(plans), 1)).logits
        elastic.set_plan(plans[0])
        assert torch.equal(model(ids).logits, want[0])  # one candidate again
    assert torch.allclose(got, torch.cat(want), rtol=0, atol=1e-4)
    assert not torch.allclose(want[0], want[-1], atol=1e-2)


@pytest.mark.parametrize("name", TINY)
def test_scores_are_those_of_each_by_itself(name):
    """With shared states and without: one by one, both give the same bits."""
    model, examples = tiny_model(name), EXAMPLES[:32]
    plans = [*drawn_plans(model, 6), {}]
    with engine_of(model, examples=examples) as engine:
        want = [engine.scores(plans, rung) for rung in range(2)]
    for layers in (True, False):
        with engine_of(model, examples=examples, layers=layers, candidate_batch_size=4) as engine:
            got = [engine.scores(plans, rung) for rung in range(2)]  # 7 are a batch and three quarters
            cost = engine.cost
        assert all(close(one, two) for one, two in zip([*want[0], *want[1]], [*got[0], *got[1]], strict=True))
        assert cost.plain_layer_tokens + cost.overhead == cost.spent + cost.prefix + cost.layers + cost.racing


PERPLEXITY = Task(name="p", type="perplexity", data=[{"text": "x"}], prompt="{text}")
TEXTS = [Example("", references=(f"the river {number} is long" * (1 + number % 3),)) for number in range(9)]


@pytest.mark.parametrize(
    ("task", "examples"),
    [(choice_task(), EXAMPLES), (choice_task(normalize="length"), EXAMPLES), (TASK, EXAMPLES), (PERPLEXITY, TEXTS)],
)
def test_a_population_of_one_is_the_plain_evaluation(task, examples):
    model = tiny_model("llama")
    prepared = prepare(model, TOKENIZER, task, examples, 256)
    with evaluating(model), torch.inference_mode():
        (one,) = prepared.run_copies(model, 1)
        two = prepared.run_copies(model, 2)
        plain = prepared.run(model)
    assert np.array_equal(one.loglik, plain.loglik)
    assert all(np.allclose(copy.loglik, plain.loglik, rtol=0, atol=1e-4) for copy in two)
    assert all(np.allclose(copy.score, plain.score, rtol=0, atol=1e-4) for copy in two)
    assert one.tokens == two[1].tokens == plain.tokens


def test_children_start_where_all_of_a_batch_were():
    """From stored states of their parents, to the same scores as from the beginning."""
    model = deep_model()
    parents = drawn_plans(model, 4)
    last = [matrix for matrix in prunable(model) if ".5." in matrix]
    children = [{name: rank for name, rank in plan.items() if name not in last} for plan in parents]
    spent, scores = [], []
    for memory in (2 << 30, 0):
        with engine_of(model, candidate_batch_size=4, memory=memory) as engine:
            engine.scores(parents, 0)
            before = engine.cost.spent
            scores.append(engine.scores(children, 0))
            spent.append(engine.cost.spent - before)
            assert engine.peak_bytes <= memory
    assert spent[1] == 6 * spent[0]  # one block of six
    assert all(close(one, two) for one, two in zip(*scores, strict=True))


def test_what_is_asked_for_decides_what_runs_alone(tmp_path):
    """Not what is missing: a resumed search must come to the same bits."""
    model, runs = tiny_model("llama"), []
    plans = drawn_plans(model, 5)
    with (
        Journal(tmp_path / "journal", {}) as journal,
        engine_of(model, journal=journal, candidate_batch_size=4) as engine,
    ):
        engine.scores(plans[:4], 0)
    with (
        Journal(tmp_path / "journal", {}) as journal,
        engine_of(model, journal=journal, candidate_batch_size=4) as engine,
    ):
        batch, one = engine._evaluator._evaluate_batch, engine._evaluator._evaluate_one
        engine._evaluator._evaluate_batch = lambda given: (runs.append("batch"), batch(given))[1]
        engine._evaluator._evaluate_one = lambda step: (runs.append("alone"), one(step))[1]
        engine.scores(plans, 0)
        engine.full(plans[0])
    assert runs == ["batch", "alone"]
