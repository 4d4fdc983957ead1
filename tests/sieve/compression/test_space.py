"""Factors and masks are one thing to a search: the same questions, and no search asks which of them it has."""

import re
from pathlib import Path

import pytest
import torch

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.compression.low_rank.methods import LOW_RANK
from sieve.compression.masks.methods import MASKING
from sieve.compression.plan import Plan
from sieve.registry import methods
from sieve.searchers.algorithms.base import SEARCHERS
from tests.tiny_models import tiny_model, tiny_tokens

ROOT = Path(sieve.__file__).parent


def space_of(model, kind):
    texts = [Sample(row.tolist(), 0) for row in tiny_tokens(8, 32)]
    statistics = collect(model, batches(texts, 4096), "input")
    return sieve.mask(model, statistics) if kind is MASKING else sieve.project(model, statistics)


def logits(model):
    with torch.inference_mode():
        return model(tiny_tokens()).logits


@pytest.mark.parametrize("kind", [LOW_RANK, MASKING], ids=lambda kind: kind.stage)
def test_a_plan_runs_alike_for_a_while_and_for_good(kind):
    model = tiny_model("llama")
    space, dense = space_of(model, kind), logits(model)
    assert space.traits is kind is methods()[space.method].makes
    plan = Plan.uniform(space.matrices(model).values(), 0.5, 1)
    with space.elastic(model) as elastic:
        elastic.set_plan(plan)
        elastically = logits(model)
        elastic.set_plan({})
        with space.stored(model, plan):
            stored = logits(model)
    assert torch.equal(logits(model), dense)
    assert not torch.allclose(stored, dense, atol=1e-3)
    torch.testing.assert_close(elastically, stored, atol=2e-3, rtol=0)
    sieve.apply_(model, space, plan)
    torch.testing.assert_close(logits(model), stored, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [LOW_RANK, MASKING], ids=lambda kind: kind.stage)
def test_a_part_of_a_space_is_another_one(kind):
    space = space_of(tiny_model("llama"), kind)
    some = list(space)[:2]
    part = space.only(some)
    assert list(part) == some
    assert (part.method, part.traits, type(part)) == (space.method, space.traits, type(space))
    assert part.fingerprint() != space.fingerprint() == space.only(space).fingerprint()


def test_every_method_says_what_it_makes_and_which_searcher_goes_with_it():
    for name, method in methods().items():
        assert method.makes.default_searcher in SEARCHERS, name
        assert methods()[method.makes.example].makes is method.makes
        assert method.makes.predictable or not SEARCHERS[method.makes.default_searcher].needs_surrogate


def test_nobody_asks_for_a_kind_of_space_or_for_a_name():
    names = "|".join([*SEARCHERS, *methods()])
    asking = re.compile(
        rf"\bin MASKS\b|(search(er)?|method)(\.name)? [!=]= |[!=]= [\"']({names})[\"']|[\"']sieve[\w.]+:\w+[\"']"
    )
    kinds = re.compile(r"isinstance\([^)]*\b(Masks|Factors)\b")
    for path in ROOT.rglob("*.py"):
        assert asking.search(path.read_text()) is None, path
        if ROOT / "compression" / "masks" not in path.parents:
            assert kinds.search(path.read_text()) is None, path
