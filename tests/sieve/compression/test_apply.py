"""Plans on models of every architecture: the applied model, the sliced one and W replaced by B A agree."""

import pytest
import torch

from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.compression.apply import apply_
from sieve.compression.low_rank.project import project
from sieve.compression.plan import Plan
from sieve.errors import InputError, NumericsError
from sieve.models.linears import check_finite, prunable, weight_of
from sieve.models.matrix import DENSE
from sieve.nn.low_rank import LowRankLinear, PivotedLinear
from tests.tiny_models import TINY, tiny_model, tiny_tokens

SEQUENCES = [Sample(ids, 20) for ids in tiny_tokens(16, 24).tolist()]


def factors_of(model, pivot=False):
    return project(model, collect(model, batches(SEQUENCES, 512)), pivot=pivot)


@torch.inference_mode()
def logits(model):
    return model(input_ids=tiny_tokens(2, 12, seed=5)).logits


@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_applied_sliced_and_multiplied_out_agree(name, pivot):
    model, reference = tiny_model(name), tiny_model(name)
    factors = factors_of(model, pivot)
    matrices = prunable(model, pivot)
    plan = Plan.uniform(matrices.values(), 0.6, 4)
    assert plan.pivoted == pivot
    dense = logits(model)
    plan[next(iter(plan))] = DENSE
    for matrix, rank in plan.ranks().items():
        A, B = factors[matrix].slice(rank)
        weight_of(reference.get_submodule(matrix)).data.copy_(B @ A)
        if factors[matrix].mean is not None:  # as by default where there is a bias
            reference.get_submodule(matrix).bias.data.add_(factors[matrix].shift(rank))
    with factors.elastic(model) as elastic:
        assert torch.equal(logits(model), dense)
        elastic.set_plan(plan)
        in_slices = logits(model)
        elastic.set_plan({})
        assert torch.equal(logits(model), dense)
    assert torch.equal(logits(model), dense)
    assert list(prunable(model)) == list(matrices)
    kind = PivotedLinear if pivot else LowRankLinear
    assert apply_(model, factors, plan) is model
    assert torch.allclose(logits(model), logits(reference), atol=1e-4)
    assert torch.allclose(logits(model), in_slices, atol=1e-5)
    assert not torch.allclose(logits(model), dense, atol=1e-2)
    assert {n for n, m in model.named_modules() if isinstance(m, kind)} == set(plan.ranks())
    removed = sum(p.numel() for p in reference.parameters()) - sum(p.numel() for p in model.parameters())
    assert removed == sum(m.parameters for m in matrices.values()) - plan.size(matrices)


def test_all_factors_need_no_more_than_one_copy_of_the_weights():
    model = tiny_model("llama")
    factors = factors_of(model)
    held = sum(pair.A.untyped_storage().nbytes() + pair.B.untyped_storage().nbytes() for pair in factors.values())
    assert held <= sum(4 * matrix.parameters for matrix in prunable(model).values())


def test_pivoted_pairs_reach_every_rank_below_full():
    """At full rank less one, the pair that is stored has one row or column fewer of everything, and is smaller."""
    model = tiny_model("llama")
    factors = factors_of(model, pivot=True)
    held = sum(pair.A.nbytes + pair.B.nbytes for pair in factors.values())
    assert held <= 2 * sum(4 * matrix.parameters for matrix in prunable(model).values())
    plan = Plan({name: matrix.max_rank for name, matrix in prunable(model, pivoted=True).items()}, pivoted=True)
    dense = logits(model)
    before = sum(p.numel() for p in model.parameters())
    apply_(model, factors, plan)
    saved = sum(m.parameters - m.size(plan[name]) for name, m in prunable(tiny_model("llama"), True).items())
    assert before - sum(p.numel() for p in model.parameters()) == saved > 0
    assert (logits(model) - dense).abs().mean() < 0.2 * dense.abs().mean()
    with pytest.raises(InputError, match="use 'dense'"):
        apply_(tiny_model("llama"), factors, Plan({n: p.max_rank + 1 for n, p in factors.items()}, pivoted=True))


def test_a_plan_can_be_applied_unpivoted_from_the_same_factors():
    one, other = tiny_model("gpt2"), tiny_model("gpt2")
    factors = factors_of(one, pivot=True)
    plan = Plan.uniform(prunable(one, True).values(), 0.5, 1)
    apply_(one, factors, plan)
    apply_(other, factors, Plan(plan, pivoted=False))
    assert torch.allclose(logits(one), logits(other), atol=1e-4)


def test_energy_lost_is_the_output_error_on_the_calibration_data():
    """`lost` tells without running the model what a stored forward measures."""
    model = tiny_model("llama")
    factors = factors_of(model)
    name = "model.layers.1.mlp.down_proj"
    layer, kept = model.get_submodule(name), []
    handle = layer.register_forward_hook(lambda m, args, output: kept.append(args[0].reshape(-1, 72)))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids for ids, _ in SEQUENCES]))
    handle.remove()
    y = kept[0] @ layer.weight.detach().T
    for rank in (1, 8, 20):
        A, B = factors[name].slice(rank)
        measured = ((y - kept[0] @ A.T @ B.T) ** 2).sum() / (y**2).sum()
        assert factors[name].lost(rank) == pytest.approx(float(measured), abs=1e-4)
    assert factors[name].lost(0) == 1


def test_embeddings_and_head_are_left_alone_and_stay_tied():
    model = tiny_model("llama")
    assert not any("lm_head" in name or "embed" in name for name in prunable(model))
    factors = factors_of(model)
    apply_(model, factors, Plan.uniform(prunable(model).values(), 0.5, 4))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_bad_plan_changes_nothing():
    model = tiny_model("llama")
    factors = factors_of(model)
    name = "model.layers.0.mlp.down_proj"
    for plan, message in (
        ({name: 4, "model.layers.9.mlp.down_proj": 4}, "layers.9"),
        ({name: factors[name].max_rank + 1}, "dense"),
        ({name: 0}, "rank 0"),
    ):
        with pytest.raises(InputError, match=message):
            apply_(model, factors, plan)
    with pytest.raises(InputError, match="do not fit"):
        apply_(tiny_model("gpt2"), factors, {})
    assert not any(isinstance(module, LowRankLinear) for module in model.modules())


def test_a_pruned_model_cannot_be_pruned_again():
    model = tiny_model("llama")
    factors = factors_of(model)
    apply_(model, factors, dict.fromkeys(factors, 4))
    with pytest.raises(InputError, match="nothing to prune"):
        prunable(model)


def test_sliced_restores_the_model_after_an_error():
    model = tiny_model("gpt2")
    factors = factors_of(model)
    dense = logits(model)
    with pytest.raises(KeyboardInterrupt), factors.elastic(model):
        raise KeyboardInterrupt
    assert torch.equal(logits(model), dense)


def test_check_finite_names_the_parameter():
    model = tiny_model("llama")
    check_finite(model)
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("inf")
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.up_proj"):
        check_finite(model)


def test_wrapped_children_are_called_not_skipped():
    """The fused operator reads plain weights only: a hook on a child must still be seen."""
    layer = LowRankLinear(6, 5, 2)
    x = torch.randn(3, 6)
    expected = layer.B(layer.A(x))
    assert torch.allclose(layer(x), expected, atol=1e-6)
    layer.A.register_forward_hook(lambda module, args, output: output * 0)
    assert torch.equal(layer(x), layer.B.bias.expand(3, 5))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("child", ["A", "C"])
def test_wrapped_children_of_a_pivoted_pair_are_called_not_skipped(child, bias):
    layer = PivotedLinear(6, 5, 2, bias=bias)
    layer.permutation.copy_(torch.randperm(5))
    if bias:
        layer.bias.data.normal_()
    x = torch.randn(3, 6)
    expected = layer(x)
    changed = getattr(layer, child)
    changed.register_forward_hook(lambda module, args, output: None)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    changed.register_forward_hook(lambda module, args, output: output + 1)
    assert (layer(x) - expected).abs().max() > 0.5


def test_pivoted_layer_refuses_impossible_ranks():
    for rank in (0, 6):
        with pytest.raises(ValueError, match="between 1 and 5"):
            PivotedLinear(6, 5, rank)
