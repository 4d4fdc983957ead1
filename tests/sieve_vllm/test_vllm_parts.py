"""What of the vLLM plugin needs no vLLM: reading `config.json`, and cutting pairs to the rows of a rank."""

import pytest
import torch
from sieve_vllm.entries import DENSE, Entry, entries_of, read_entries
from sieve_vllm.parts import Part, pivoted_rows, rows_of_rank

from sieve.checkpoint.folder import write_quantization_config
from sieve.checkpoint.hf_quantizer import SieveConfig
from tests.tiny_models import tiny_pruned

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
