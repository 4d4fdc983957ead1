"""The list "A model family that also runs fast" of CONTRIBUTING.md: one row, and its modules use our operators."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from sieve.nn.families import FAMILIES, Family, family_of, kind_of
from sieve.nn.fuse import fused
from sieve.nn.patching import replaced_by
from tests.tiny_models import tiny_model, tiny_tokens


class ToyMLP(LlamaMLP): ...


class ToyRMSNorm(LlamaRMSNorm): ...


class ToyAttention(LlamaAttention): ...


class ToyDecoderLayer(LlamaDecoderLayer): ...


TOYS = {LlamaMLP: ToyMLP, LlamaRMSNorm: ToyRMSNorm, LlamaAttention: ToyAttention, LlamaDecoderLayer: ToyDecoderLayer}
KINDS = {ToyMLP: "mlp", ToyRMSNorm: "norm", ToyAttention: "attention"}


def toy_model():
    """A tiny model of a family that Sieve does not know."""
    model = tiny_model("llama")
    for module in model.modules():
        module.__class__ = TOYS.get(type(module), type(module))
    return model


@torch.no_grad()
def test_a_row_makes_a_family_fast(monkeypatch):
    model, ids = toy_model(), tiny_tokens()
    plain = model(ids).logits
    own = [module for module in model.modules() if type(module) in KINDS]
    assert family_of(model) is None
    with fused(model):
        assert [module for module in own if replaced_by(module)] == []

    monkeypatch.setitem(FAMILIES, "Toy", Family())
    assert family_of(model) is FAMILIES["Toy"]
    with fused(model):
        assert [module for module in own if not replaced_by(module)] == []
        assert torch.allclose(model(ids).logits, plain, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "norm", "attention"])
def test_what_a_family_computes_otherwise_is_left_alone(monkeypatch, kind):
    model = toy_model()
    monkeypatch.setitem(FAMILIES, "Toy", Family(**{kind: False}))
    found = {kind_of(module) for module in model.modules()} - {None}
    assert found == set(KINDS.values()) - {kind}
