"""Means in the bias: never worse on the calibration data, the same map wherever it is stored."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.linears import prunable, weight_of
from sieve.searchers.sensitivity import sensitivity
from tests.tiny_models import TINY, tiny_model, tiny_tokenizer, tiny_tokens

SEQUENCES = [Sample(ids, 20) for ids in tiny_tokens(16, 24).tolist()]


def statistics_of(model, needs="cheapest", **more):
    statistics = collect(model, batches(SEQUENCES, 512), needs, **more)
    statistics.samples = SEQUENCES
    return statistics


@torch.no_grad()
def inputs_of(model) -> dict[str, torch.Tensor]:
    """Matrix → [tokens, n] float64."""
    kept = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, args, name=name: kept.update({name: args[0].reshape(-1, args[0].shape[-1]).double()})
        )
        for name in prunable(model)
    ]
    model(input_ids=torch.tensor([ids for ids, _ in SEQUENCES]))
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("needs", ["cheapest", "input"])
def test_is_the_best_affine_map_of_its_rank(needs):
    """An SVD of the centred outputs; at every rank no worse than without a mean."""
    model = tiny_model("llama")
    statistics = statistics_of(model, needs)
    centred, plain = (sieve.project(model, statistics, mean=mean) for mean in (True, None))
    for name, X in inputs_of(model).items():
        W, pair = weight_of(model.get_submodule(name)).detach().double(), centred[name]
        Y = X @ W.T
        middle = Y - Y.mean(0)
        singular = torch.linalg.svdvals(middle)
        for rank in (1, 5, pair.max_rank):
            A, B = (factor.double() for factor in pair.slice(rank))
            error = float((Y - X @ A.T @ B.T - pair.shift(rank).double()).square().sum())
            total = float(Y.square().sum())
            assert error == pytest.approx(float(singular[rank:].square().sum()), abs=1e-5 * total)
            assert pair.lost(rank) == pytest.approx(error / float(middle.square().sum()), abs=1e-4)
            assert plain[name].mean is None
            A, B = (factor.double() for factor in plain[name].slice(rank))
            assert error <= float((Y - X @ A.T @ B.T).square().sum()) + 1e-6 * total


@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_slices_applied_and_loaded_models_agree(name, pivot, tmp_path):
    """Also where the dense matrices have no bias: config.json says that the pairs have one."""
    model, multiplied = tiny_model(name), tiny_model(name)
    factors = sieve.project(model, statistics_of(model), pivot=pivot, mean=True)
    plan = Plan.uniform(prunable(model, pivot).values(), 0.5, 4)
    plan[next(iter(plan))] = "dense"
    ids = tiny_tokens(2, 12, seed=5)
    for matrix, rank in plan.ranks().items():
        layer, (A, B) = multiplied.get_submodule(matrix), factors[matrix].slice(rank)
        weight_of(layer).data.copy_(B @ A)
        bias = layer.bias.detach() if layer.bias is not None else 0
        layer.bias = torch.nn.Parameter(bias + factors[matrix].shift(rank))
        if matrix.endswith(("c_attn", "c_fc", "c_proj")):
            layer.forward = lambda x, layer=layer: x @ layer.weight + layer.bias
    with torch.no_grad(), factors.elastic(model) as elastic:
        elastic.set_plan(plan)
        assert torch.allclose(model(input_ids=ids).logits, multiplied(input_ids=ids).logits, atol=1e-3)
    sieve.apply_(model, factors, plan)
    sieve.save(model, tiny_tokenizer(), tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(layer.bias for layer in again.config.quantization_config.layers.values())
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.allclose(logits, multiplied(input_ids=ids).logits, atol=1e-3)
        assert torch.allclose(again(input_ids=ids).logits, logits, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "centred"),
    [
        ("llama", set()),
        ("qwen2", {"q_proj", "k_proj", "v_proj"}),
        ("opt", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
    ],
)
def test_by_default_where_there_is_a_bias(name, centred):
    model = tiny_model(name)
    statistics = statistics_of(model)
    factors = sieve.project(model, statistics)
    assert {matrix.rsplit(".", 1)[1] for matrix, pair in factors.items() if pair.mean is not None} == centred
    assert not any(pair.mean is not None for pair in sieve.project(model, statistics, mean=False).values())


def test_several_candidates_at_a_time():
    """The layer of a search that serves a population adds the means to each, but to the dense ones."""
    model = tiny_model("llama")
    factors = sieve.project(model, statistics_of(model), mean=True)
    with torch.no_grad(), factors.elastic(model) as elastic:
        if not hasattr(elastic, "set_batch"):
            pytest.skip("one candidate at a time")
        plans = [Plan.uniform(prunable(tiny_model("llama")).values(), kept, 4) for kept in (0.3, 0.6)] + [{}]
        ids = tiny_tokens(2, 12, seed=5)
        alone = []
        for plan in plans:
            elastic.set_plan(plan)
            alone.append(model(input_ids=ids).logits)
        elastic.set_batch(plans)
        together = model(input_ids=ids.repeat(3, 1)).logits.reshape(3, 2, 12, -1)
        assert torch.allclose(together, torch.stack(alone), atol=1e-3)


def test_refit_centres_too():
    """Targets and inputs each about their own mean: nearer to the dense model than the pairs it begins with."""
    model = tiny_model("opt")
    statistics = statistics_of(model)
    factors = sieve.project(model, statistics)
    plan = Plan.uniform(prunable(model).values(), 0.5, 4)
    again = sieve.refit(model, factors, plan, statistics, ridge=0.01)
    ids = torch.tensor([ids for ids, _ in SEQUENCES])
    with torch.no_grad():
        dense = model.base_model(ids).last_hidden_state
        errors = []
        for candidate in (factors, again):
            with candidate.elastic(model) as elastic:
                elastic.set_plan(plan)
                errors.append(float((model.base_model(ids).last_hidden_state - dense).square().sum()))
    assert errors[1] < errors[0]
    name = "model.decoder.layers.1.fc2"
    assert not torch.allclose(again[name].mean, factors[name].mean, atol=1e-3)
    assert torch.allclose(again[name].output_mean, factors[name].output_mean, atol=1e-3)


def test_predicted_loss_is_that_of_what_is_left(world):
    """At full rank nothing is lost, means or not."""
    model, tokenizer = sieve.load_model(world.model)
    task = sieve.load_task(world.task)
    statistics = sieve.calibrate(model, tokenizer, task, tokens=1000)
    name = "model.layers.1.self_attn.o_proj"
    factors = sieve.project(model, statistics, pivot=True, mean=True)
    curves, _ = sensitivity(model, tokenizer, factors, task, task.splits()["calibration"][:8])
    assert curves[name][-1] < 0.2 * curves[name][1]


def test_statistics_without_means_say_so():
    model = tiny_model("llama")
    statistics = statistics_of(model)
    statistics.sums = {}
    assert sieve.project(model, statistics)
    with pytest.raises(InputError, match="no means"):
        sieve.project(model, statistics, mean=True)
