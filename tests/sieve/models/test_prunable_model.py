"""A model that knows its layers: they are found out once, however many stages it goes through."""

from collections import Counter
from contextlib import suppress

import pytest
import torch
from torch import nn

import sieve
from sieve.models import prunable_model
from sieve.models.linears import left_dense, prunable
from sieve.models.prunable_model import PrunableModel
from sieve.nn.families import FAMILIES
from sieve.searchers.run import run_search
from tests.tiny_models import TINY, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("name", TINY)
def test_it_knows_what_the_model_is_made_of(name):
    model = tiny_model(name)
    known = PrunableModel(model)
    assert known.matrices() == prunable(model)
    assert known.matrices(pivoted=True) == prunable(model, True)
    assert known.left_dense == left_dense(model)
    assert sorted(name for group in known.input_groups for name in group) == sorted(known.matrices())
    assert len(known.blocks) == 2
    assert (known.device, known.dtype) == (model.device, model.dtype)
    for key, matrix in known.matrices().items():
        assert known.weight(key).shape == (matrix.m, matrix.n)
    assert PrunableModel.of(known) is known
    assert PrunableModel.of(model).model is model


def test_layers_of_one_input_are_grouped_and_families_are_known():
    groups = [[name.rpartition(".")[2] for name in group] for group in PrunableModel(tiny_model("llama")).input_groups]
    assert groups == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]] * 2
    assert PrunableModel(tiny_model("llama")).family is FAMILIES["Llama"]
    assert PrunableModel(tiny_model("gemma")).family is FAMILIES["Gemma"]
    assert PrunableModel(tiny_model("gpt2")).family is None


def test_replaced_layers_are_the_models_own_again_whatever_happens():
    known = PrunableModel(tiny_model("llama"))
    name = next(iter(known.matrices()))
    own, other = known.layer(name), nn.Identity()
    with suppress(RuntimeError), known.replaced({name: other}):
        assert known.layer(name) is other
        raise RuntimeError
    assert known.layer(name) is own
    ids = torch.zeros(1, 3, dtype=torch.int64)
    assert known.run_decoder(ids, torch.ones_like(ids)).last_hidden_state.shape[:2] == (1, 3)


def test_no_stage_asks_the_model_again(world, monkeypatch):
    asked = Counter()
    for function in (prunable_model.prunable, prunable_model.group_layers_by_input):

        def counted(*args, function=function):
            asked[function.__name__] += 1
            return function(*args)

        monkeypatch.setattr(prunable_model, function.__name__, counted)
    dense, tokenizer = PrunableModel(tiny_model("llama")), tiny_tokenizer()
    statistics = sieve.calibrate(dense, tokenizer, world.task, 800)
    factors = sieve.project(dense, statistics)
    result = run_search(dense, tokenizer, factors, world.task, 0.9, "uniform", rank_multiple=4)
    assert sieve.refit(dense, factors, result.plan, statistics).keys() == result.plan.ranks().keys()
    assert asked == {"prunable": 1, "group_layers_by_input": 1}
