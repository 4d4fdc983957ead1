"""The engine against the plain evaluation of the same candidates, and its book-keeping."""

from contextlib import contextmanager
from dataclasses import fields

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sieve.compression.low_rank.factors import Factors
from sieve.compression.low_rank.pair import FactorPair
from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.evaluation.scoring import evaluate, prepare
from sieve.models.linears import prunable, weight_of
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.engine.engine import Engine, split_into_rungs
from sieve.searchers.engine.journal import Journal
from sieve.searchers.genome import Genome
from tests.sieve.evaluation.test_scoring import choice_examples, choice_task
from tests.tiny_models import TINY, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EXAMPLES = choice_examples(48)
TASK = choice_task(normalize="prior")


def svd_factors(model):
    pairs = {}
    for name, matrix in prunable(model).items():
        U, S, V = torch.linalg.svd(weight_of(model.get_submodule(name)).detach(), full_matrices=False)
        rank = matrix.max_rank
        pairs[name] = FactorPair((S[:, None] * V)[:rank].contiguous(), U[:, :rank].contiguous(), (S**2).double())
    return Factors(pairs, "svd")


def drawn_plans(model, number=12, seed=0):
    genome = Genome(prunable(model), multiple=4)
    draw = np.random.default_rng(seed)
    base = draw.integers(genome.bounds)
    plans = []
    for _ in range(number):
        levels = base.copy()
        gene = draw.integers(len(genome))
        levels[gene:] = draw.integers(genome.bounds)[gene:]
        plans.append(genome.plan(levels))
    return plans


@contextmanager
def engine_of(model, task=TASK, examples=EXAMPLES, number=2, **options):
    rungs = [prepare(model, TOKENIZER, task, rung, 256) for rung in split_into_rungs(examples, number)]
    switches = {field.name: options.pop(field.name) for field in fields(EngineConfig) if field.name in options}
    matrices, config = prunable(model), EngineConfig(**switches)
    with (
        svd_factors(model).elastic(model) as elastic,
        Engine(model, elastic, matrices, rungs, config, **options).running() as engine,
    ):
        yield engine


def plain(model, plan, examples, task=TASK):
    with svd_factors(model).elastic(model) as elastic:
        elastic.set_plan(plan)
        return evaluate(model, TOKENIZER, task, examples, 256)


@pytest.mark.parametrize("name", TINY)
def test_same_bits_as_plain_evaluation(name):
    """Of the same rung: the passes are the same ones, whatever is reused."""
    model = tiny_model(name)
    plans = drawn_plans(model, 6)
    want = [[plain(model, plan, examples) for plan in plans] for examples in split_into_rungs(EXAMPLES, 2)]
    for layers in (True, False):
        with engine_of(model, layers=layers) as engine:
            assert engine.layers == layers
            got = [engine.scores(plans, rung) for rung in range(2)]
            assert (engine.cost.layers > 0) == layers
        for one, other in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
            assert np.array_equal(one.loglik, other.loglik)
            assert np.array_equal(one.score, other.score)


def test_rungs_together_are_the_whole():
    model = tiny_model("llama")
    (plan,) = drawn_plans(model, 1)
    want = plain(model, plan, EXAMPLES)
    with engine_of(model, number=3, examples=EXAMPLES * 2) as engine:
        assert len(engine) == 3
        got = engine.full(plan)
    assert got.loglik == pytest.approx(np.tile(want.loglik, 2), abs=1e-4)


@pytest.mark.parametrize("task", [choice_task(), choice_task(normalize="length")])
def test_other_normalisations(task):
    model = tiny_model("llama")
    (plan,) = drawn_plans(model, 1)
    with engine_of(model, task, number=1) as engine:
        got = engine.full(plan)
    assert np.array_equal(got.loglik, plain(model, plan, EXAMPLES, task).loglik)


def test_costs_add_up_and_nothing_is_evaluated_twice():
    model = tiny_model("llama")
    plans = drawn_plans(model, 10)
    with engine_of(model) as engine:
        engine.scores(plans, 0)
        engine.scores(plans[:4], 1)
        spent, cost = engine.cost.spent, engine.cost
        assert 0 < spent - cost.overhead <= engine.nominal
        assert cost.evaluations == len({str(p) for p in plans}) + len({str(p) for p in plans[:4]})
        engine.scores(plans, 0)
        assert cost.spent == spent
        assert cost.journal >= 10 * cost.plain[0] * 2
    assert cost.racing > 0
    assert cost.prefix > 0
    assert cost.plain_layer_tokens + cost.overhead == cost.spent + cost.prefix + cost.layers + cost.racing
    own = [len(TOKENIZER.encode(e.prompt + c)) for e in EXAMPLES for c in e.choices]
    priors = {(e.neutral, c) for part in [EXAMPLES[:24]] for e in part for c in e.choices}
    assert cost.plain[0] == sum(own[: 4 * 24]) + sum(len(TOKENIZER.encode(n + c)) for n, c in priors)


def generations(model, number=3):
    """Calls as a genetic search makes them: parents, then children that share their first blocks, one plan alone."""
    parents = drawn_plans(model, 6)
    calls = [(parents, rung) for rung in range(2)]
    for seed in range(1, number):
        children = [
            {name: parent.get(name, rank) if ".0." in name else rank for name, rank in plan.items()}
            for parent, plan in zip(parents, drawn_plans(model, 6, seed), strict=True)
        ]
        calls += [(children, 0), (children[:3], 1), (children[:1], 1), (parents[:2], 0)]
    return calls


def played(calls, model, **options):
    with engine_of(model, **options) as engine:
        for place, (plans, rung) in enumerate(calls):
            engine.scores(plans, rung)
            if place % 3 == 2:
                engine.retain(plans)
        measured = sum(spent.layer_tokens * spent.copies for _, spent in engine._records.values())
        return engine.cost.summary() | {"peak": engine.peak_bytes, "nominal": engine.nominal}, measured


@pytest.mark.parametrize(
    ("candidate_batch_size", "memory", "layers"),
    [(1, 2 << 30, True), (1, 1 << 20, True), (1, 0, False), (4, 2 << 30, True), (4, 1 << 20, True)],
)
def test_costs_do_not_tell_that_a_search_was_interrupted(tmp_path, candidate_batch_size, memory, layers):
    """They are what was measured where it was not; a resumed one has lost the states that it shared."""
    model, path = deep_model(), tmp_path / "journal"
    calls = generations(model)
    options = {
        "examples": EXAMPLES[:32],
        "candidate_batch_size": candidate_batch_size,
        "memory": memory,
        "layers": layers,
    }
    with Journal(path, {}) as journal:
        whole, measured = played(calls, model, journal=journal, **options)
    assert whole["layer_tokens_spent"] - whole["layer_tokens_overhead"] == measured
    lines = path.read_bytes().splitlines(keepends=True)
    more = 0
    for left in (5, len(lines) - 1):
        path.write_bytes(b"".join(lines[:left]))
        with Journal(path, {}) as journal:
            again, measured = played(calls, model, journal=journal, **options)
        assert again == whole
        more += whole["layer_tokens_spent"] - whole["layer_tokens_overhead"] < measured
    assert more or memory < 2 << 30  # what was really done is more


def test_a_journal_answers_for_an_earlier_process(tmp_path):
    model = tiny_model("llama")
    plans = drawn_plans(model, 8)
    with engine_of(model) as engine:
        whole = [engine.scores(plans, rung) for rung in range(2)]
        nominal, spent = engine.nominal, engine.cost.spent
    with Journal(tmp_path / "journal", {"model": 1}) as journal, engine_of(model, journal=journal) as engine:
        engine.scores(plans[:5], 0)
    runs = []
    with Journal(tmp_path / "journal", {"model": 1}) as journal, engine_of(model, journal=journal) as engine:
        engine._evaluator.rungs = [
            type(rung)(lambda model, run=rung.run: (runs.append(1), run(model))[1], rung.plain_tokens, 0)
            for rung in engine._evaluator.rungs
        ]
        again = [engine.scores(plans, rung) for rung in range(2)]
        assert (engine.nominal, len(journal.records)) == (nominal, len({str(plan) for plan in plans}) * 2)
        assert len(runs) == len(journal.records) - len({str(plan) for plan in plans[:5]})
        assert engine.cost.spent == spent
    for one, two in zip([*whole[0], *whole[1]], [*again[0], *again[1]], strict=True):
        assert np.array_equal(one.loglik, two.loglik)
        assert np.array_equal(one.choice_logprob, two.choice_logprob)


def deep_model(blocks=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = TINY["llama"]()
        config.num_hidden_layers = blocks
        config.layer_types = None
        return AutoModelForCausalLM.from_config(config).eval()


def test_states_stay_within_their_memory():
    model = deep_model()
    plans, examples = drawn_plans(model, 12), EXAMPLES[:32]
    with engine_of(model, examples=examples) as engine:
        whole = engine.scores(plans, 0)
        assert 0 < engine.peak_bytes <= 2 << 30
        peak = engine.peak_bytes
    for memory in (peak // 2, peak // 3, peak // 5, peak // 8, 0):
        with engine_of(model, examples=examples, memory=memory) as engine:
            got = [engine.scores(plans, rung) for rung in range(2)]
            assert engine.peak_bytes <= memory
            assert all(np.array_equal(one.loglik, two.loglik) for one, two in zip(got[0], whole, strict=True))
            assert engine.cost.layers >= 0


def test_children_start_where_their_parents_were():
    """In a later call, from stored states; forgotten ones are computed again, to the same bits."""
    model = tiny_model("llama")
    parent = Genome(prunable(model), multiple=4)
    levels = parent.dense // 2
    child = levels.copy()
    child[-1] -= 1  # in block 1 of 2
    plans = [parent.plan(levels), parent.plan(child)]
    spent, bits = [], []
    for forget in (False, True):
        with engine_of(model) as engine:
            engine.scores(plans[:1], 0)
            engine.retain([] if forget else plans[:1])
            before = engine.cost.spent
            bits.append(engine.scores(plans[1:], 0)[0].loglik)
            spent.append(engine.cost.spent - before)
    assert spent[1] == 2 * spent[0]
    assert np.array_equal(*bits)


def test_the_model_is_dense_and_whole_again():
    model = tiny_model("llama")
    before = evaluate(model, TOKENIZER, TASK, EXAMPLES)
    (plan,) = drawn_plans(model, 1)
    with engine_of(model) as engine:
        engine.full(plan)
    assert np.array_equal(evaluate(model, TOKENIZER, TASK, EXAMPLES).loglik, before.loglik)


def test_a_plan_of_another_model_is_refused():
    with engine_of(tiny_model("llama")) as engine, pytest.raises(InputError, match="nowhere"):
        engine.full(Plan({"nowhere": 3}))


def test_rungs_double():
    assert [len(rung) for rung in split_into_rungs(range(600))] == [75, 75, 150, 300]
    assert [len(rung) for rung in split_into_rungs(range(40))] == [20, 20]
    assert [len(rung) for rung in split_into_rungs(range(5))] == [5]
    assert [x for rung in split_into_rungs(range(601)) for x in rung] == list(range(601))
