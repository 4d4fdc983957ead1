"""Layers that read one input as one: the model is the same, one pair serves them, and checkpoints know of it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModel

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.checkpoint.hf_quantizer import SieveConfig
from sieve.compression.low_rank.problem import balance
from sieve.compression.low_rank.project import project
from sieve.compression.low_rank.refit import refit
from sieve.compression.low_rank.share_inputs import share_inputs_
from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.linears import prunable, weight_of
from sieve.nn import fuse
from sieve.nn.low_rank import PAIRS
from sieve.nn.stacked import stack_, stack_name, stacks
from sieve_kernels import lowrank_mlp
from tests.tiny_models import tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens

SEPARATE = ["llama", "qwen2", "qwen3", "mistral", "gemma", "opt"]
SEQUENCES = [Sample(ids, 20) for ids in tiny_tokens(16, 24).tolist()]


@torch.inference_mode()
def logits(model):
    return model(input_ids=tiny_tokens(2, 12, seed=5)).logits


def statistics_of(model):
    found = collect(model, batches(SEQUENCES, 512))
    found.samples = SEQUENCES
    return found


@pytest.mark.parametrize("name", SEPARATE)
def test_the_model_stays_what_it_is(name):
    model = tiny_model(name)
    dense, size = logits(model), sum(parameter.numel() for parameter in model.parameters())
    assert share_inputs_(model) is model
    assert torch.allclose(logits(model), dense, atol=1e-5)
    assert torch.allclose(logits(copy.deepcopy(model)), dense, atol=1e-5)
    assert torch.allclose(logits(pickle.loads(pickle.dumps(model))), dense, atol=1e-5)
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    attention = [matrix for matrix in prunable(model) if matrix.endswith(".self_attn.qkv_proj")]
    assert len(attention) == 2  # of two blocks
    assert [m for m in prunable(model) if "mlp" in m][::2] == [m for m in stacks(model) if "mlp" in m]
    assert not any(
        matrix.endswith(("q_proj", "k_proj", ".v_proj", "gate_proj"))
        for matrix in list(prunable(model))
        if "qkv" not in matrix
    )


def test_gradients_reach_the_stack():
    separate, model = tiny_model("qwen2"), share_inputs_(tiny_model("qwen2"))
    tokens = tiny_tokens()
    for one in (separate, model):
        one(input_ids=tokens, labels=tokens).loss.backward()
    attention, stack = separate.model.layers[0].self_attn, model.model.layers[0].self_attn.qkv_proj
    members = (attention.q_proj, attention.k_proj, attention.v_proj)
    assert torch.allclose(stack.weight.grad, torch.cat([one.weight.grad for one in members]), atol=1e-5)
    assert torch.allclose(stack.bias.grad, torch.cat([one.bias.grad for one in members]), atol=1e-5)


def test_an_output_asked_for_twice_or_out_of_order_is_right():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a = nn.Linear(4, 3), nn.Linear(4, 2, bias=False)

    parent = Parent()
    before = copy.deepcopy(parent)
    model = nn.ModuleDict({"parent": parent})
    stack_(model, {"parent.b_a": ["b", "a"]})
    assert list(dict(parent.named_children())) == ["b_a", "b", "a"]
    x, y = torch.randn(2, 5, 4)
    for member, input in (("a", x), ("a", x), ("b", y), ("b", x), ("a", y), ("a", x), ("b", x)):
        assert torch.allclose(getattr(parent, member)(input), getattr(before, member)(input), atol=1e-6)
    assert not parent.b_a.bias[3:].any()  # of the member that has none


def test_compiles_in_one_graph():
    model = share_inputs_(tiny_model("llama"))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.allclose(
            compiled(input_ids=tiny_tokens(), use_cache=False).logits, model(input_ids=tiny_tokens()).logits
        )


@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_pruned_saved_and_loaded(tmp_path, name, pivot):
    model, reference = (share_inputs_(tiny_model(name)) for _ in range(2))
    factors = project(model, statistics_of(model), pivot=pivot)
    plan = Plan.uniform(prunable(model, pivot).values(), 0.6, 4)
    plan["model.layers.1.mlp.gate_up_proj"] = "dense"
    for matrix, rank in plan.ranks().items():
        A, B = factors[matrix].slice(rank)
        weight_of(reference.get_submodule(matrix)).data.copy_(B @ A)
        if factors[matrix].mean is not None:
            reference.get_submodule(matrix).bias.data.add_(factors[matrix].shift(rank))
    sieve.apply_(model, factors, plan)
    assert isinstance(model.get_submodule("model.layers.0.self_attn.qkv_proj"), PAIRS)
    assert torch.allclose(logits(model), logits(reference), atol=1e-4)
    sieve.save(model, tiny_tokenizer(), tmp_path / "model")
    loaded, _ = sieve.load(tmp_path / "model")
    assert torch.equal(logits(loaded), logits(model))
    assert stacks(loaded) == stacks(model)
    sieve.save(loaded, tiny_tokenizer(), tmp_path / "again")
    again, _ = sieve.load(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))


def test_stacks_are_saved_without_pairs_and_with_masks_and_loaded_bare(tmp_path):
    model = share_inputs_(tiny_model("llama"))
    sieve.save(model, tiny_tokenizer(), tmp_path / "dense")
    loaded, _ = sieve.load(tmp_path / "dense")
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)
    bare = AutoModel.from_pretrained(tmp_path / "dense").eval()
    with torch.inference_mode():
        expected = model.model(input_ids=tiny_tokens()).last_hidden_state
        assert torch.allclose(bare(input_ids=tiny_tokens()).last_hidden_state, expected, atol=1e-5)
    masks = sieve.mask(model, None, "magnitude")
    sieve.apply_(model, masks, Plan.uniform(masks.matrices(model).values(), 0.5))
    sieve.save(model, tiny_tokenizer(), tmp_path / "masked")
    loaded, _ = sieve.load(tmp_path / "masked")
    assert torch.equal(logits(loaded), logits(model))
    assert stacks(loaded) == stacks(model)


def test_a_stack_of_gate_and_up_is_one_call(monkeypatch):
    """With down; and the same as module by module, which is what a hook on one of them asks for."""
    model = share_inputs_(tiny_model("llama"))
    factors = project(model, statistics_of(model), pivot=True)
    sieve.apply_(model, factors, Plan.uniform(prunable(model, True).values(), 0.6, 4))
    calls = []
    monkeypatch.setattr(fuse, "lowrank_mlp", lambda *given: calls.append(given[2]) or lowrank_mlp(*given))
    fused = logits(model)
    assert calls == [None] * 2
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda *_: None)
    assert torch.allclose(logits(model), fused, atol=1e-5)
    assert len(calls) == 2


def test_members_count_alike():
    torch.manual_seed(0)
    W, C = torch.randn(6, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    W[:2] *= 100
    W[5] = 0
    for gram, side in ((C, "input"), (W @ C @ W.T, "output")):
        scale = balance(W, gram, side, [2, 3, 1])
        energy = (scale * W).square().sum(1)
        assert torch.allclose(energy[:2].sum(), energy[2:5].sum())
        assert scale[5] == 1
        assert torch.allclose((scale * W).square().sum(), W.square().sum())  # their sum stays


def test_one_A_serves_the_stack_as_well_as_it_can():
    """Of the balanced stack the pair is the best of its rank: no worse than one from a decomposition of it."""
    model = share_inputs_(tiny_model("llama"))
    statistics, name = statistics_of(model), "model.layers.0.self_attn.qkv_proj"
    W, gram = model.get_submodule(name).weight.double(), statistics.grams[statistics.sources[name].gram].double()
    A, B = (factor.double() for factor in project(model, statistics)[name].slice(12))
    scale = balance(W, gram, "input", [32, 16, 16])
    root = torch.linalg.cholesky(gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram)))
    left = torch.linalg.svdvals(scale * W @ root)[12:].square().sum()
    E = scale * (W - B @ A)
    assert torch.isclose((E @ gram * E).sum(), left, rtol=1e-3)


def test_a_refit_is_of_the_stack_too():
    model = share_inputs_(tiny_model("llama"))
    statistics = statistics_of(model)
    factors, plan = project(model, statistics), Plan.uniform(prunable(model).values(), 0.5, 4)
    again = refit(model, factors, plan, statistics)
    assert again.keys() == plan.ranks().keys()
    errors = {}
    for which, pairs in (("before", factors), ("after", again)):
        pruned = sieve.apply_(copy.deepcopy(model), pairs, plan)
        tokens = tiny_tokens(16, 24)
        with torch.no_grad():
            errors[which] = float((pruned(input_ids=tokens).logits - model(input_ids=tokens).logits).square().mean())
    assert errors["after"] < errors["before"]


def test_names():
    assert stack_name(["q_proj", "k_proj", "v_proj"]) == "qkv_proj"
    assert stack_name(["gate_proj", "up_proj"]) == "gate_up_proj"
    assert stack_name(["query", "key"]) == "query_key"


@pytest.mark.parametrize("name", ["gpt2", "phi3"])
def test_nothing_to_share_is_refused(name):
    with pytest.raises(InputError, match="none to share"):
        share_inputs_(tiny_model(name))


def test_what_cannot_be_a_stack_is_refused():
    with pytest.raises(InputError, match="pruned already"):
        share_inputs_(tiny_pruned("llama"))
    with pytest.raises(InputError, match=r"mlp\.down_proj is no linear layer of the width"):
        stack_(tiny_model("llama"), {"model.layers.0.mlp.wrong": ["up_proj", "down_proj"]})
    with pytest.raises(InputError, match=r"layers\.9\.mlp\.up_proj is no linear layer"):
        stack_(tiny_model("llama"), {"model.layers.9.mlp.both": ["up_proj", "gate_proj"]})
    for members in ("up_proj", ["up_proj"], ["up_proj", 1]):
        with pytest.raises(InputError, match=r"mlp\.both': its members must be the names of two matrices or more"):
            SieveConfig({"model.layers.0.mlp.both": {"format": "dense", "members": members}})
