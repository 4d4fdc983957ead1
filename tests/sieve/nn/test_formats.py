"""Formats of layers: what they cost, what they store, what config.json says; and that one more is one more file."""

import copy
import json
from pathlib import Path

import pytest
import torch

import sieve
import sieve.nn.formats
from sieve.checkpoint.folder import load, save, write_quantization_config
from sieve.errors import InputError, StorageError
from sieve.models.linears import layer_in, prunable, replace
from sieve.nn.formats.base import format_from_config, format_of, formats, formats_of
from sieve.nn.formats.dense import Dense
from sieve.nn.formats.masked import Masked
from sieve.nn.formats.narrow import Narrow
from sieve.nn.formats.pair import Pair
from sieve.nn.formats.pivoted_pair import PivotedPair
from sieve.nn.fuse import fuse_
from tests.tiny_models import tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens

PAIRS = (Pair, PivotedPair)
TOY = str(Path(__file__).parent / "toy_formats")


@torch.no_grad()
def logits(model):
    return model(tiny_tokens()).logits


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(("m", "n"), [(7, 12), (12, 7), (9, 9), (1, 5), (64, 48)])
def test_what_ranks_cost_is_what_is_stored(kind, m, n):
    most = kind.max_rank(m, n)
    assert kind.numel(m, n, most) < m * n or most == 0
    assert most == m - 1 or kind.numel(m, n, most + 1) >= m * n
    for rank in range(1, most + 1):
        layer = kind(rank).module(m, n, bias=False, dtype=torch.bfloat16)
        assert sum(one.numel() for one in layer.parameters()) == kind.numel(m, n, rank)
        stored = sum(one.nbytes for one in (*layer.parameters(), *layer.buffers()))
        assert stored == kind(rank).nbytes(m, n, 2)
        assert kind.rank_of(m, n, kind.numel(m, n, rank)) == pytest.approx(rank)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("bias", [False, True])
def test_factors_are_those_it_was_filled_with(kind, bias):
    A, B, b = torch.randn(3, 8), torch.randn(6, 3), torch.randn(6) if bias else None
    layer = kind(3).module(6, 8, bias)
    kind(3).fill_(layer, A, B, b)
    assert format_of(layer) == kind(3, bias=True if bias else None)
    stored_A, stored_B, stored_bias = format_of(layer).factors(layer)
    torch.testing.assert_close(stored_B @ stored_A, B @ A)
    assert (stored_bias is None) == (b is None)
    x = torch.randn(4, 8)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, B @ A, b))


@pytest.mark.parametrize(
    "format",
    [
        Pair(4),
        Pair(4, True),
        PivotedPair(7),
        Masked(0.5),
        Masked(0.25, "2:4"),
        Narrow(8, 6),
        Narrow(8, 6, True),
        Dense(),
    ],
)
def test_config_round_trip(format):
    entry = json.loads(json.dumps(format.to_config()))
    assert format_from_config(entry) == format
    assert all(value is not None for value in entry.values())


def test_names():
    assert list(formats()) == ["dense", "mask", "narrow", "pair", "pivoted_pair", "quantized_pair"]
    assert formats_of(tiny_model("llama")) == {}


def test_formats_mix_in_one_model(tmp_path):
    model = tiny_pruned("gpt2")
    for name, format in formats_of(tiny_pruned("gpt2", pivoted=True)).items():
        if ".h.1." in name:
            replace(model, name, tiny_pruned("gpt2", pivoted=True).get_submodule(name))
            assert isinstance(format, PivotedPair)
    masks = sieve.mask(model, None, "magnitude")
    dense = next(iter(prunable(model)))
    sieve.apply_(model, masks, {dense: 8})
    save(model, tiny_tokenizer(), tmp_path / "m")
    loaded, _ = load(tmp_path / "m")
    assert torch.equal(logits(loaded), logits(model))
    assert {type(one) for one in loaded.config.quantization_config.layers.values()} == {Pair, PivotedPair, Masked}
    assert loaded.config.quantization_config.to_dict() == model.config.quantization_config.to_dict()
    assert formats_of(copy.deepcopy(loaded)) == formats_of(model)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(sieve.nn.formats, "__path__", [*sieve.nn.formats.__path__, TOY])
    formats.cache_clear()
    yield
    monkeypatch.undo()
    formats.cache_clear()


def test_one_more_format_is_one_more_file(toy, tmp_path):
    """Saved, loaded, counted and described, with the file alone."""
    model = tiny_model("llama")
    name = "model.layers.1.mlp.up_proj"
    dense = model.get_submodule(name)
    layer = layer_in(formats()["signs"](), dense)
    with torch.no_grad():
        layer.signs.copy_(torch.where(dense.weight < 0, -1, 1))
        layer.scale.copy_(dense.weight.abs().mean(1))
    replace(model, name, layer)
    fuse_(model)  # as loading does
    assert write_quantization_config(model)[name].to_config() == {"format": "signs"}
    assert name not in prunable(model)
    save(model, tiny_tokenizer(), tmp_path / "m")
    assert "1 of its weight matrices are signs." in (tmp_path / "m" / "README.md").read_text()
    loaded, _ = load(tmp_path / "m", dtype="bfloat16")
    assert loaded.get_submodule(name).signs.dtype == torch.int8
    assert torch.equal(logits(load(tmp_path / "m")[0]), logits(model))
    with torch.no_grad():
        layer.signs[0] = 3
    save(model, tiny_tokenizer(), tmp_path / "damaged")
    with pytest.raises(StorageError, match=f"the signs of {name} are none"):
        load(tmp_path / "damaged")


def test_without_its_file_the_format_is_refused():
    with pytest.raises(InputError, match="its format is 'signs'; this Sieve reads dense, mask, narrow, pair"):
        format_from_config({"format": "signs"})
