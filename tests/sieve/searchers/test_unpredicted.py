"""Matrices whose gradients say nothing: an index of attention chooses tokens, and no gradient goes through a choice."""

from types import SimpleNamespace

import pytest
import torch

from sieve.errors import InputError
from sieve.searchers.run import run_search
from sieve.searchers.sensitivity import sensitivity
from tests.all_architectures import tiny_random
from tests.sieve.evaluation.test_scoring import choice_examples, choice_task
from tests.sieve.searchers.engine.test_engine import svd_factors
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def indexed(world):
    model = tiny_random("deepseek_v32")
    return SimpleNamespace(model=model, tokenizer=tiny_tokenizer(), factors=svd_factors(model), task=world.task)


def searched(given, **options):
    options = {"allow_no_signal": True, "rank_multiple": 1, "search": "budget"} | options
    return run_search(given.model, given.tokenizer, given.factors, given.task, **options)


def test_they_stay_dense_and_are_named(indexed, monkeypatch):
    notes = []
    monkeypatch.setattr("sieve.progress.note", notes.append)
    result = searched(indexed, kept=0.7)
    indexers = {name for name in indexed.factors if ".indexer." in name}
    assert indexers
    assert set(result.unpredicted) == indexers
    assert not indexers & set(result.plan.ranks())
    (note,) = [note for note in notes if "no gradient" in note]
    assert sorted(indexers)[0] in note
    # The size that was asked for is of all prunable matrices.
    assert 0.6 < 1 - result.plan.prunable_removed(result.matrices) <= 0.7


def test_the_others_make_up_for_them_or_say_that_they_cannot(indexed):
    sizes = {name: pair.A.shape[1] * pair.B.shape[0] for name, pair in indexed.factors.items()}
    indexers = sum(size for name, size in sizes.items() if ".indexer." in name) / sum(sizes.values())
    with pytest.raises(InputError, match=r"not reached without these matrices: raise it, or use --search uniform"):
        searched(indexed, kept=indexers * 0.9)
    assert ".indexer." in " ".join(searched(indexed, kept=0.4, search="uniform").plan.ranks())


def test_blocks_that_record_nothing_are_refused_in_one_line():
    model = tiny_model("llama")
    for block in model.model.layers:
        block.forward = torch.no_grad()(block.forward)
    with pytest.raises(InputError, match=r"LlamaForCausalLM gives no gradients .*--search uniform") as caught:
        sensitivity(model, tiny_tokenizer(), svd_factors(model), choice_task(), choice_examples(4))
    assert "\n" not in str(caught.value)
