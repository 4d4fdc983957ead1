"""What of the vLLM plugin needs no vLLM: reading `config.json`, cutting pairs to a rank's rows, filling up channels."""

import pytest
import torch
from sieve_vllm.channels import as_stored, channels_of_rank, padded
from sieve_vllm.entries import DENSE, Entry, entries_of, read_entries
from sieve_vllm.parts import Part, pivoted_rows, rows_of_rank

from sieve.checkpoint.folder import write_quantization_config
from sieve.checkpoint.hf_quantizer import SieveConfig
from tests.tiny_models import narrow_, tiny_model, tiny_pruned

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}


def test_what_sieve_writes_is_read_and_so_is_version_1():
    model = tiny_pruned("qwen2", pivoted=True)
    write_quantization_config(model)
    written = model.config.quantization_config
    assert isinstance(written, SieveConfig)
    entries = read_entries(written.to_dict())
    q = "model.layers.0.self_attn.q_proj"
    assert entries[q] == Entry("pivoted_pair", 4, True)
    assert {name: entry.rank for name, entry in entries.items()} == {
        name: format.rank for name, format in written.layers.items()
    }
    old = read_entries({"version": 1, "ranks": {q: 4}, "pivoted": True, "biased": True, "masks": {"o": 0.5}})
    assert old == {q: entries[q]}


def test_what_sieve_writes_of_mlps_that_have_lost_channels_is_read():
    model = tiny_model("llama")
    narrow_(model.model.layers[0].mlp, 21)
    write_quantization_config(model)
    entries = read_entries(model.config.quantization_config.to_dict())
    assert entries == {
        "model.layers.0.mlp.gate_proj": Entry("narrow", inputs=32, outputs=21),
        "model.layers.0.mlp.up_proj": Entry("narrow", inputs=32, outputs=21),
        "model.layers.0.mlp.down_proj": Entry("narrow", inputs=21, outputs=32),
    }
    packed = {"gate_up_proj": ["gate_proj", "up_proj"]}
    mlp = "model.layers.0.mlp"
    assert entries_of(f"{mlp}.gate_up_proj", packed, entries) == [Entry("narrow", inputs=32, outputs=21)] * 2
    assert entries_of(f"{mlp}.down_proj", packed, entries) == [Entry("narrow", inputs=21, outputs=32)]
    assert entries_of("model.layers.1.mlp.gate_up_proj", packed, entries) is None
    for other in (DENSE, Entry("pair", 3), Entry("narrow", inputs=32, outputs=24)):
        entries[f"{mlp}.up_proj"] = other
        with pytest.raises(ValueError, match=r"the parts of model.layers.0.mlp.gate_up_proj have lost different"):
            entries_of(f"{mlp}.gate_up_proj", packed, entries)


def test_what_it_does_not_know_is_named():
    with pytest.raises(ValueError, match="quantised by 'torchao'"):
        read_entries({"version": 2, "layers": {}, "tensors": "torchao"})
    with pytest.raises(ValueError, match="format 3"):
        read_entries({"version": 3, "layers": {}})
    with pytest.raises(ValueError, match="o_proj is stored as 'int4_pair'"):
        read_entries({"version": 2, "layers": {"o_proj": {"format": "int4_pair", "rank": 3}}})


def test_a_fused_layer_is_its_parts_or_one_pair():
    pair = Entry("pair", 3)
    assert entries_of("a.qkv_proj", PACKED, {"a.q_proj": pair}) == [pair, DENSE, DENSE]
    assert entries_of("a.qkv_proj", PACKED, {"a.qkv_proj": pair}) == [pair]
    assert entries_of("a.o_proj", PACKED, {"a.o_proj": pair}) == [pair]
    assert entries_of("a.qkv_proj", PACKED, {"b.q_proj": pair}) is None


@pytest.mark.parametrize("rows", [range(10), range(3, 7), range(8, 10), range(0)])
def test_rows_of_a_pivoted_pair(rows):
    torch.manual_seed(0)
    C, permutation, z = torch.randn(6, 4), torch.randperm(10), torch.randn(3, 4)
    y = torch.empty(3, 10)
    y[:, permutation] = torch.cat([z, z @ C.T], -1)
    rows = torch.tensor([*rows], dtype=torch.int64)
    weight, index = pivoted_rows(C, permutation, rows)
    assert len(weight) <= min(6, len(rows))
    torch.testing.assert_close(Part(4, weight, index)(None, z), y[:, rows])


def test_outputs_that_ranks_do_not_divide_are_refused():
    assert rows_of_rank(12, 4, 2).tolist() == [8, 9, 10, 11]
    with pytest.raises(ValueError, match="10 outputs"):
        rows_of_rank(10, 4, 2)


@pytest.mark.parametrize(("channels", "ranks", "here"), [(312, 1, 312), (312, 2, 160), (21, 1, 24), (5, 3, 8)])
def test_each_rank_has_eights_of_channels(channels, ranks, here):
    assert channels_of_rank(channels, ranks) == here
    assert here * ranks >= channels > (here - 8) * ranks


def test_weights_and_biases_are_filled_up_with_zeros():
    weight, bias = torch.randn(5, 3), torch.randn(5)
    wide = padded(weight, 8, 4)
    assert wide.shape == (8, 4)
    assert torch.equal(wide[:5, :3], weight)
    assert wide.count_nonzero() == weight.count_nonzero()
    assert padded(bias, 8, 4).tolist() == [*bias.tolist(), 0, 0, 0]
    assert torch.equal(padded(weight, 5, 3), weight)


def test_a_matrix_that_a_loader_has_transposed_is_turned_back():
    square, thin, bias = torch.randn(4, 4), torch.randn(6, 2), torch.randn(4)
    for stored in (square, thin, bias):
        assert torch.equal(as_stored(stored), stored)
    for stored in (square, thin):
        assert torch.equal(as_stored(stored.t()), stored)
