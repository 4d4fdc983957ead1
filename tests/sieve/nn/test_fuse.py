"""Fused gated MLPs: the same outputs, used where they can be and never where something would be skipped."""

import copy

import pytest
import torch

import sieve.nn.fuse
import sieve.nn.low_rank
from sieve.models.linears import layer_in, prunable, replace
from sieve.nn.formats.pair import Pair
from sieve.nn.formats.pivoted_pair import PivotedPair
from sieve.nn.fuse import fuse_, fused
from sieve.nn.low_rank import Group, LowRankLinear
from tests.all_architectures import tiny_random
from tests.tiny_models import tiny_model, tiny_tokens


@pytest.fixture
def calls(monkeypatch):
    """How often the fused operator ran."""
    made = []
    operator = sieve.nn.fuse.lowrank_mlp
    monkeypatch.setattr(sieve.nn.fuse, "lowrank_mlp", lambda *arguments: made.append(1) or operator(*arguments))
    return made


def pruned(name, dense=()):
    """A tiny model whose matrices are random pairs, but those whose name ends in one of `dense`."""
    model = tiny_model(name)
    for matrix in prunable(model):
        if not matrix.endswith(tuple(dense)):
            replace(model, matrix, layer_in(Pair(5), model.get_submodule(matrix)))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_fused_model_gives_the_same_logits_and_gradients(name, calls):
    model = pruned(name)
    fused = fuse_(copy.deepcopy(model))
    torch.testing.assert_close(logits(fused), logits(model), rtol=1e-4, atol=1e-4)
    assert len(calls) == 2
    for one in (model, fused):
        one(tiny_tokens()).logits.square().mean().backward()
    for (key, ours), theirs in zip(fused.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["phi3", "gpt2", "opt", "gpt_neox"])
def test_other_mlps_are_left_alone(name, calls):
    model = pruned(name)
    before = logits(model)
    torch.testing.assert_close(logits(fuse_(model)), before)
    assert not calls


@pytest.mark.parametrize(
    ("name", "norms", "turns"),
    [
        ("llama", 5, 2),
        ("qwen2", 5, 2),
        ("mistral", 5, 2),
        ("qwen3", 9, 2),
        ("phi3", 5, 2),
        ("gemma", 0, 0),
        ("gpt2", 0, 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_positions_are_one_pass_each(name, norms, turns, dtype, monkeypatch):
    made = []
    for operator in ("rms_norm", "rotary"):
        function = getattr(sieve.nn.fuse, operator)
        monkeypatch.setattr(
            sieve.nn.fuse, operator, lambda *a, function=function, name=operator: made.append(name) or function(*a)
        )
    model = tiny_model(name).to(dtype)
    fused = fuse_(copy.deepcopy(model))
    torch.testing.assert_close(logits(fused), logits(model))
    assert (made.count("rms_norm"), made.count("rotary")) == (norms, turns)
    made.clear()
    fused(tiny_tokens()).logits.sum().backward()
    assert not made  # gradients are torch's own


@pytest.fixture
def as_on_gpu(monkeypatch):
    """What a GPU is asked for, on the CPU; the names of the operators that are called."""
    made = []
    for module, name in (
        (sieve.nn.fuse, "act_mul"),
        (sieve.nn.fuse, "linear"),
        (sieve.nn.low_rank, "lowrank_linear"),
        (sieve.nn.low_rank, "lowrank_linear_pivoted"),
        (sieve.nn.low_rank, "lowrank_linear_group"),
    ):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, function=function, name=name: made.append(name) or function(*a))
    monkeypatch.setattr(sieve.nn.fuse, "_on_gpu", lambda x: True)
    return made


def pivoted(name, **options):
    """A tiny model whose matrices are random pivoted pairs."""
    model = tiny_model(name, **options)
    for matrix in prunable(model):
        pair = layer_in(PivotedPair(5), model.get_submodule(matrix))
        pair.permutation.copy_(torch.randperm(pair.out_features))
        replace(model, matrix, pair)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("make", [pruned, pivoted])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_query_key_and_value_are_computed_together(name, make, mode, as_on_gpu):
    model = make(name)
    with mode():
        before = model(tiny_tokens()).logits
        as_on_gpu.clear()
        torch.testing.assert_close(fuse_(model)(tiny_tokens()).logits, before, rtol=1e-4, atol=1e-4)
    assert as_on_gpu.count("lowrank_linear_group") == 2
    assert "group" not in model.model.layers[0].self_attn.q_proj.__dict__
    as_on_gpu.clear()
    model(tiny_tokens()).logits.sum().backward()
    assert "lowrank_linear_group" not in as_on_gpu


@pytest.mark.parametrize("where", ["q_proj", "k_proj.A", "v_proj.B"])
def test_hooks_of_query_key_and_value_are_called(where, as_on_gpu):
    model = fuse_(pruned("llama"))
    seen = []
    hook = model.model.layers[0].self_attn.get_submodule(where).register_forward_hook(lambda *_: seen.append(1))
    logits(model)
    assert seen == [1]
    assert as_on_gpu.count("lowrank_linear_group") == 1  # the other block's
    hook.remove()
    logits(model)
    assert as_on_gpu.count("lowrank_linear_group") == 3


def test_query_key_and_value_of_several_kinds_are_computed_one_by_one(as_on_gpu):
    model = pruned("llama", dense=["v_proj"])
    before = logits(model)
    as_on_gpu.clear()
    torch.testing.assert_close(logits(fuse_(model)), before, rtol=1e-4, atol=1e-4)
    assert "lowrank_linear_group" not in as_on_gpu
    assert as_on_gpu.count("lowrank_linear") > 0


def test_a_group_hands_out_what_belongs_to_the_input():
    torch.manual_seed(0)
    pairs = [LowRankLinear(6, m, 2) for m in (4, 3, 5)]
    x, other = torch.randn(2, 6), torch.randn(2, 6)
    with torch.no_grad():
        expected, of_other = ([pair(t) for pair in pairs] for t in (x, other))
        with Group.of(pairs):
            torch.testing.assert_close(pairs[1](x), expected[1])
            torch.testing.assert_close(pairs[0](other), of_other[0])
            torch.testing.assert_close(pairs[1](x), expected[1])  # once more
            torch.testing.assert_close(pairs[2](x), expected[2])
            torch.testing.assert_close(pairs[0](x.clone()), expected[0])
        with Group.of(pairs):
            torch.testing.assert_close(pairs[0](x), expected[0])
            x.copy_(other)
            torch.testing.assert_close(pairs[1](x), of_other[1])
        with pytest.raises(ValueError, match=r"\[2, 7\]"), Group.of(pairs):
            pairs[0](torch.randn(2, 7))
    assert not any("group" in pair.__dict__ for pair in pairs)


def test_a_dense_mlp_multiplies_in_the_pass_of_its_activation(as_on_gpu):
    model = pruned("llama", dense=["gate_proj", "up_proj", "down_proj"])
    before = logits(model)
    as_on_gpu.clear()
    fused = fuse_(copy.deepcopy(model))
    torch.testing.assert_close(logits(fused), before, rtol=1e-4, atol=1e-4)
    assert as_on_gpu.count("act_mul") == 2
    model(tiny_tokens()).logits.square().mean().backward()
    fused(tiny_tokens()).logits.square().mean().backward()
    for ours, theirs in zip(fused.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert as_on_gpu.count("act_mul") == 2


def test_dense_layers_on_a_gpu_use_our_product_for_few_rows_of_16_bits(as_on_gpu):
    few, serves = torch.ones(2, 3, 8, dtype=torch.bfloat16), sieve.nn.fuse._few_on_gpu
    assert not serves(few)  # gradients are torch's own
    with torch.no_grad():
        assert serves(few)
        assert not serves(few.float())
        assert not serves(few.repeat(1, 20, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [pruned, pivoted])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_fused_model_on_a_gpu(name, make):
    """In 16 bits as close to float64 as without."""
    model = make(name).cuda()
    tokens = tiny_tokens().cuda()
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(tokens).logits
        model = model.bfloat16()
        plain = model(tokens).logits
        ours = fuse_(model)(tokens).logits
    error, allowed = ((y.double() - exact).norm() for y in (ours, plain))
    assert error <= 2 * allowed


def test_fused_for_a_while():
    """Also nested, and with layers replaced meanwhile; what was fused for good stays so."""
    model = tiny_model("llama")
    before = logits(model)
    with fused(model), fused(model):
        assert "forward" in model.model.norm.__dict__
        torch.testing.assert_close(logits(model), before)
        layer = model.model.layers[0].mlp.up_proj
        replace(model, "model.layers.0.mlp.up_proj", layer_in(Pair(3), layer))
    replace(model, "model.layers.0.mlp.up_proj", layer)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(logits(model), before)
    fuse_(model)
    with fused(model):
        pass
    assert "forward" in model.model.norm.__dict__


def test_generation_with_a_cache_is_the_same():
    model = pruned("llama")
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": True}
    before = model.generate(tiny_tokens(), **options)
    assert torch.equal(fuse_(model).generate(tiny_tokens(), **options), before)


@pytest.mark.parametrize("dense", [["gate_proj"], ["up_proj", "down_proj"]])
def test_dense_parts_go_along(dense, calls):
    model = pruned("llama", dense=dense)
    before = logits(model)
    torch.testing.assert_close(logits(fuse_(model)), before)
    assert len(calls) == 2


def test_a_dense_mlp_keeps_its_own_forward(calls):
    model = pruned("llama", dense=["gate_proj", "up_proj", "down_proj"])
    before = logits(model)
    torch.testing.assert_close(logits(fuse_(model)), before)
    assert not calls


def test_a_patched_dense_layer_is_called(calls):
    model = fuse_(pruned("llama", dense=["down_proj"]))
    layer = model.model.layers[0].mlp.down_proj
    layer.forward = lambda x: torch.zeros(*x.shape[:-1], layer.out_features)
    logits(model)
    assert len(calls) == 1  # the other block's MLP


def test_pivoted_pairs_are_fused(calls):
    model = tiny_model("llama")
    for name in prunable(model):
        pair = layer_in(PivotedPair(5), model.get_submodule(name))
        torch.nn.init.normal_(pair.A.weight, std=0.3)
        torch.nn.init.normal_(pair.C.weight, std=0.3)
        pair.permutation.copy_(torch.randperm(pair.out_features))
        replace(model, name, pair)
    before = logits(model)
    torch.testing.assert_close(logits(fuse_(model)), before)
    assert len(calls) == 2


@pytest.mark.parametrize("where", ["gate_proj", "up_proj.A", "gate_proj.B", "down_proj"])
def test_hooks_set_later_are_called(where, calls):
    model = fuse_(pruned("llama"))
    seen = []
    hook = model.model.layers[0].mlp.get_submodule(where).register_forward_hook(lambda *_: seen.append(1))
    logits(model)
    assert seen == [1]
    assert len(calls) == 1  # the other block's MLP
    hook.remove()
    logits(model)
    assert len(calls) == 3


def test_dense_layers_use_our_product_until_something_wraps_their_weight(monkeypatch):
    model = fuse_(pruned("llama", dense=["o_proj"]))
    products = []
    operator = sieve.nn.fuse.linear
    monkeypatch.setattr(sieve.nn.fuse, "linear", lambda *arguments: products.append(1) or operator(*arguments))
    before = logits(model)
    assert len(products) == 3  # o_proj twice and the head
    layer = model.model.layers[1].self_attn.o_proj
    layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Wrapped))
    products.clear()
    torch.testing.assert_close(logits(model).as_subclass(torch.Tensor), before)
    assert len(products) == 2


def test_weights_that_are_made_anew_at_each_call_are_used():
    model = fuse_(pruned("llama"))
    before = logits(model)
    block = model.model.layers[0]
    for layer in (block.input_layernorm, block.self_attn.q_proj.A, block.mlp.down_proj.B, model.lm_head):
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    doubled = logits(model)
    assert not torch.allclose(doubled, before)
    for module in model.modules():
        module.__dict__.pop("forward", None)
    torch.testing.assert_close(doubled, logits(model))


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


class Wrapped(torch.Tensor):
    """Stands for a quantiser's tensor."""


def test_outputs_of_dense_layers_can_be_added_to_in_place():
    """RoCBert's embeddings do so."""
    model = tiny_random("roc_bert")

    def gradients():
        loss = model(input_ids=tiny_tokens()).logits.square().mean()
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)

    expected = gradients()
    with fused(model):
        found = gradients()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_copies_run_their_own_weights():
    model = fuse_(pruned("llama"))
    other = copy.deepcopy(model)
    before = logits(model)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    assert logits(other).count_nonzero() == 0
    assert torch.equal(logits(model), before)


def test_pruned_models_come_fused(calls):
    """`apply_` and loading a saved model both do it: see also the checkpoint's tests of equal logits."""
    from sieve.compression.apply import apply_
    from tests.sieve.compression.test_apply import factors_of

    model = tiny_model("llama")
    factors = factors_of(model)
    plan = dict.fromkeys(prunable(model), 4)
    logits(apply_(model, factors, plan))
    assert len(calls) == 2
