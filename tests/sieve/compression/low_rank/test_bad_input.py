"""Statistics that are singular, not finite, of dead channels or at the limits of float32: every projection by name."""

import math
from importlib import import_module

import pytest
import torch

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.compression.low_rank.methods import LOW_RANK
from sieve.compression.plan import Plan
from sieve.errors import NumericsError
from sieve.models.prunable_model import PrunableModel
from sieve.registry import methods
from tests.tiny_models import tiny_model, tiny_tokens

FEW = [Sample(row[:5].tolist(), 3) for row in tiny_tokens(3, 5)]
NAME = "model.layers.0.mlp.down_proj"
NESTED = [name for name, method in methods().items() if method.makes is LOW_RANK and method.nested]


def statistics_of(model, sequences, method):
    wanted = methods()[method]
    channels = PrunableModel(model).channel_writers if wanted.channels else ()
    statistics = collect(model, batches(sequences, 512), "input", wanted.gradients, channels)
    statistics.samples = sequences
    statistics.held_back = sequences[:1] if wanted.gradients else []
    return statistics


def check(model, factors) -> None:
    """Factors and the model that they make are finite, and W comes back at full rank where that is stored."""
    plan = Plan.uniform(factors.matrices(model).values(), 0.5, 4)
    for pair in factors.values():
        assert all(tensor.isfinite().all() for tensor in (pair.A, pair.B, pair.energy))
    with torch.no_grad(), factors.elastic(model) as elastic:
        elastic.set_plan(plan)
        assert model(input_ids=tiny_tokens()).logits.isfinite().all()
    assert sieve.apply_(model, factors, plan)(input_ids=tiny_tokens()).logits.isfinite().all()


@pytest.mark.parametrize("mean", [None, True])
@pytest.mark.parametrize("method", NESTED)
def test_fewer_tokens_than_channels(method, mean):
    """15 tokens for 32 and 72 channels: every Gram matrix is singular."""
    model = tiny_model("llama")
    statistics = statistics_of(model, FEW, method)
    assert statistics.tokens == 15
    check(model, sieve.project(model, statistics, method, pivot=True, mean=mean))


@pytest.mark.parametrize("method", NESTED)
def test_dead_channels_and_a_dead_matrix(method):
    """A norm that silences channels, an MLP whose inputs are all zero, and a matrix of zeros."""
    model = tiny_model("llama")
    model.get_submodule("model.layers.0.input_layernorm").weight.data[:7] = 0
    model.get_submodule("model.layers.1.post_attention_layernorm").weight.data.zero_()
    model.get_submodule("model.layers.0.mlp.up_proj").weight.data.zero_()
    statistics = statistics_of(model, [Sample(ids, 20) for ids in tiny_tokens(8, 24).tolist()], method)
    assert not statistics.grams["model.layers.1.mlp.gate_proj"].any()
    check(model, sieve.project(model, statistics, method, pivot=True))


@pytest.mark.parametrize("scale", [1e-18, 1e18])
@pytest.mark.parametrize("method", NESTED)
def test_size_does_not_matter(method, scale):
    """Statistics near the ends of float32 give the map that ordinary ones give."""
    model = tiny_model("llama")
    statistics = statistics_of(model, [Sample(ids, 20) for ids in tiny_tokens(8, 24).tolist()], method)
    plain = sieve.project(model, statistics, method)
    for table in (statistics.grams, statistics.sums):
        for key in table:
            table[key] = table[key] * scale
    scaled = sieve.project(model, statistics, method)
    for name, pair in plain.items():
        rank = 6
        one, other = (p.B[:, :rank] @ p.A[:rank] for p in (pair, scaled[name]))
        assert torch.allclose(one, other, atol=1e-3 * float(one.abs().max())), name


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", NESTED)
@pytest.mark.parametrize("where", ["gram", "sums", "weights"])
def test_what_is_not_finite_names_the_matrix(method, where, value):
    model = tiny_model("llama")
    statistics = statistics_of(model, FEW, method)
    if where == "weights":
        model.get_submodule(NAME).weight.data[3, 5] = value
    else:
        table = statistics.grams if where == "gram" else statistics.sums
        table[NAME] = table[NAME].clone()
        table[NAME][1, 1] = value
    with pytest.raises(NumericsError, match=r"layers\.0\.mlp\.down_proj"):
        sieve.project(model, statistics, method)


def test_gradients_that_are_all_zero_fall_back(monkeypatch):
    """One matrix without gradients among others: its pair is that of output_aligned."""
    model = tiny_model("llama")
    sequences = [Sample(ids, 20) for ids in tiny_tokens(8, 24).tolist()]
    statistics = statistics_of(model, sequences, "loss_aware")
    statistics.grams[f"{NAME}.gradient"].zero_()
    # The package's `project` is the function: the module of that name has to be asked for.
    monkeypatch.setattr(import_module("sieve.compression.low_rank.project"), "choose_ridge", lambda *arguments: 0.1)
    ours, plain = sieve.project(model, statistics, "loss_aware"), sieve.project(model, statistics)
    assert torch.equal(ours[NAME].A, plain[NAME].A)
    other = "model.layers.1.mlp.down_proj"
    assert not torch.allclose(ours[other].A, plain[other].A)


@pytest.mark.parametrize("ridge", [1e-30, 1e30, math.inf])
def test_extreme_ridges(monkeypatch, ridge):
    model = tiny_model("llama")
    statistics = statistics_of(model, FEW, "loss_aware")
    monkeypatch.setattr("sieve.compression.low_rank.ridge.RIDGES", (ridge,))
    check(model, sieve.project(model, statistics, "loss_aware", pivot=True))
