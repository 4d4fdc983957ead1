"""Pairs in 8 and 4 bits: sizes to the byte, errors, saving and loading in any dtype, and what is refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import sieve
from sieve.checkpoint.export import export
from sieve.checkpoint.folder import load, save
from sieve.checkpoint.size import model_bytes
from sieve.errors import InputError, NumericsError, StorageError
from sieve.models.linears import prunable
from sieve.nn.formats.base import formats_of
from sieve.nn.formats.quantized_pair import QuantizedPair
from sieve.nn.quantized import QuantizedLinear
from sieve.nn.scales import quantize_for
from sieve_kernels import dequantize_rows, quantize_rows
from tests.tiny_models import TINY, tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens

KINDS = {"int8": 8, "int4": 4}


@torch.no_grad()
def logits(model):
    return model(tiny_tokens()).logits.float()


def stored_bytes(m: int, n: int, r: int, kind: str) -> int:
    """A [r, n] and B [m, r]: integers, and float32 scales."""
    if kind == "int8":
        return r * n + 4 * r + m * r + 4 * m
    return r * -(-n // 2) + 4 * r * -(-n // 64) + m * -(-r // 2) + 4 * m * -(-r // 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pivoted", [False, True])
def test_sizes_to_the_byte(kind, pivoted, tmp_path):
    model = tiny_pruned("llama", pivoted=pivoted)
    before, pairs = (
        model_bytes(model),
        {name: (model.get_submodule(name), one.rank) for name, one in formats_of(model).items()},
    )
    plain = sum(tensor.nbytes for layer, _ in pairs.values() for tensor in (*layer.parameters(), *layer.buffers()))
    wanted = sum(stored_bytes(one.out_features, one.in_features, rank, kind) for one, rank in pairs.values())
    assert sieve.quantize_(model, kind) is model
    assert model_bytes(model) == before - plain + wanted
    for name, format in formats_of(model).items():
        layer = model.get_submodule(name)
        assert format == QuantizedPair(pairs[name][1], bits=KINDS[kind])
        m, n = layer.out_features, layer.in_features
        assert format.nbytes(m, n, 2) == stored_bytes(m, n, layer.rank, kind)
    save(model, tiny_tokenizer(), tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "sieve.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == model_bytes(model)
    assert sum(tensor.shape[0] == 128 for tensor in tensors.values()) == 1  # the tied table, once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TINY)
def test_round_trip(name, kind, tmp_path):
    model = sieve.quantize_(tiny_pruned(name, pivoted=name in ("llama", "gpt2")), kind)
    expected = logits(model)
    save(model, tiny_tokenizer(), tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(logits(load(tmp_path / "m")[0]), expected)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), expected)
    tied = model.config.tie_word_embeddings
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert {layer["format"] for layer in config["layers"].values()} == {"quantized_pair"}
    assert f"low-rank pairs in {KINDS[kind]} bits" in (tmp_path / "m" / "README.md").read_text()
    assert torch.equal(logits(copy.deepcopy(loaded)), expected)
    assert loaded.generate(tiny_tokens(1, 4), max_new_tokens=3, min_new_tokens=3).shape == (1, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_casts_touch_neither_integers_nor_scales(kind, tmp_path):
    model = sieve.quantize_(tiny_pruned("gpt2"), kind)
    save(model, tiny_tokenizer(), tmp_path / "m")

    def tensors(model):
        return {name: one for name, one in model.state_dict().items() if name.endswith(("_q", "_scale"))}

    wanted = tensors(model)
    assert {one.dtype for one in wanted.values()} == {torch.float32, torch.int8 if kind == "int8" else torch.uint8}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=dtype)
        cast = copy.deepcopy(model).to(dtype)
        for one in (loaded, cast, load(tmp_path / "m", dtype=dtype)[0], cast.half().float(), cast.double()):
            found = tensors(one)
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
            assert all(found[name].dtype == wanted[name].dtype for name in wanted)
        assert loaded.transformer.h[0].attn.c_attn.bias.dtype == dtype
        assert torch.allclose(logits(loaded), logits(model), atol=0.3)


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.01), ("int4", 0.2)])
@pytest.mark.parametrize("pivoted", [False, True])
def test_errors(kind, most, pivoted):
    """Of every layer, as a share of its weight."""
    exact = tiny_pruned("qwen2", pivoted=pivoted)
    model = sieve.quantize_(copy.deepcopy(exact), kind)
    for name in formats_of(model):
        W, found = exact.get_submodule(name).weight, model.get_submodule(name).weight
        assert 0 < float((found - W).detach().norm() / W.detach().norm()) < most
    assert list(formats_of(exact)) == list(formats_of(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 37, 65])
def test_any_rank(kind, rank):
    generator = torch.Generator().manual_seed(rank)
    A, B = torch.randn(rank, 70, generator=generator), torch.randn(129, rank, generator=generator)
    A[1:2], B[5], B[7], B[8, 0] = 0, 0, 1e-42, 1e3
    format = QuantizedPair(rank, bits=KINDS[kind])
    layer = format.module(129, 70, bias=False)
    format.fill_(layer, A, B)
    assert format.check(layer, "x") is None
    assert not layer.weight[5].any()
    assert layer.weight[7].abs().max() < 1e-10
    assert float((layer.weight - B @ A).norm() / (B @ A).norm()) < (0.01 if kind == "int8" else 0.2)
    x = torch.randn(3, 70, generator=generator)
    torch.testing.assert_close(layer(x), x @ layer.weight.T, rtol=1e-3, atol=1e-3)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_below_the_smallest_normal_number(bits):
    """Their integers stay in their range."""
    W = torch.tensor([2.1e-43, -1.9e-43, 1e-45, 0]).expand(3, 4) * torch.tensor([[1.0], [0.5], [0.02]])
    found = dequantize_rows(*quantize_rows(W, bits), 4, torch.float32)
    assert ((found == 0) | (found.sign() == W.sign())).all()
    assert found.abs().max() <= 2 * W.abs().max()


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_lose_less_than_those_that_cut_nothing_off(bits):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(40, 130, generator=generator)
    W[:, 3] *= 6
    energy = torch.rand(130, generator=generator)
    energy[3] = 0

    def error(quantised, importance):
        return float(((dequantize_rows(*quantised, 130, torch.float32) - W).square() * importance).sum())

    by_weight, whole = error(quantize_for(W, bits, None), 1), error(quantize_rows(W, bits), 1)
    assert by_weight < 0.99 * whole if bits == 4 else by_weight <= whole
    weighed = error(quantize_for(W, bits, energy), energy)
    assert weighed < 0.9 * error(quantize_for(W, bits, None), energy)


@torch.no_grad()
def test_grams_of_the_calibration_weigh_the_errors():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    statistics = sieve.calibrate(model, tokenizer, "geography", tokens=2000, method="svd")
    factors = sieve.project(model, statistics, "svd")
    sieve.apply_(model, factors, sieve.Plan.uniform(prunable(model).values(), 0.5))
    with_data, without = (sieve.quantize_(copy.deepcopy(model), "int4", data) for data in (statistics, None))

    def error(quantised):
        total = 0.0
        for name in formats_of(quantised):
            gram = statistics.grams[statistics.sources[name].gram].double()
            E = (quantised.get_submodule(name).weight - model.get_submodule(name).weight).double()
            total += float((E @ gram * E).sum() / gram.trace())
        return total

    assert error(with_data) < error(without)


def test_a_quantised_model_is_exported_multiplied_out(tmp_path):
    model = sieve.quantize_(tiny_pruned("llama", dtype=torch.bfloat16), "int8")
    save(model, tiny_tokenizer(), tmp_path / "m")
    export(tmp_path / "m", tmp_path / "dense", "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert dense.dtype == torch.bfloat16
    assert formats_of(dense) == {}
    torch.testing.assert_close(logits(dense), logits(model), rtol=0.05, atol=0.2)


def test_bad_input(tmp_path):
    model = tiny_pruned("llama")
    with pytest.raises(InputError, match="cannot quantise to 'int3': choose one of int8, int4"):
        sieve.quantize_(model, "int3")
    with pytest.raises(InputError, match="no low-rank pairs to quantise"):
        sieve.quantize_(tiny_model("llama"), "int8")
    model.model.layers[0].self_attn.q_proj.A.weight.data[0, 0] = torch.nan
    with pytest.raises(NumericsError, match="q_proj"):
        sieve.quantize_(model, "int8")
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    model = sieve.quantize_(tiny_pruned("llama"), "int8")
    for kind in KINDS:
        with pytest.raises(InputError, match=r"quantised already \(model.*q_proj is in 8 bits\)"):
            sieve.quantize_(model, kind)
    save(model, tiny_tokenizer(), tmp_path / "m")
    with pytest.raises(InputError, match="quantised already"):
        sieve.quantize_(load(tmp_path / "m")[0], "int4")
    weights = load_file(tmp_path / "m" / "sieve.safetensors")
    name = next(name for name in weights if name.endswith("A_scale"))
    weights[name][0] = -1
    save_file(weights, tmp_path / "m" / "sieve.safetensors", {"format": "pt"})
    with pytest.raises(StorageError, match=r"A_scale of model.*has a scale that is not positive"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_layers_of_torchao_are_refused():
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_pruned("llama")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(InputError, match="quantised already"):
        sieve.quantize_(model, "int8")
