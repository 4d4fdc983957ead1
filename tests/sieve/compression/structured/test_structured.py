"""Blocks and channels removed: which ones, against hidden states and activations that are kept; and what is left."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from sieve.calibration.collect import collect
from sieve.calibration.statistics import Statistics
from sieve.calibration.text import Sample, batches
from sieve.compression.structured.depth import choose_blocks, drop_blocks_
from sieve.compression.structured.width import drop_channels_
from sieve.errors import InputError
from sieve.models.decoder import decoder_blocks
from sieve.models.linears import prunable
from tests.tiny_models import TINY, tiny_model, tiny_tokens

SEQUENCES = [
    Sample(row[:n].tolist(), 1) for row, n in zip(tiny_tokens(8, 30), (30, 4, 17, 17, 9, 25, 3, 12), strict=True)
]


def statistics_of(model) -> Statistics:
    statistics = collect(model, batches(SEQUENCES, 100))
    statistics.samples = SEQUENCES
    return statistics


def deep(blocks: int):
    """A Llama of several blocks, whose blocks write more or less into the residual stream."""
    model = tiny_model("llama")
    config = model.config
    config.num_hidden_layers = blocks
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config).eval()
        for index, block in enumerate(model.model.layers):
            for parameter in block.parameters():
                parameter.data.mul_(1 + 3 * ((5 * index) % 7) / 7 if parameter.dim() > 1 else 1)
    return model


@torch.no_grad()
def hidden_states(model, ids) -> list[torch.Tensor]:
    """Entering block 0 and leaving each block, from a plain run of one sequence block by block."""
    states = []
    handles = [model.model.layers[0].register_forward_pre_hook(lambda m, args: states.append(args[0][0].double()))]
    for block in model.model.layers:
        handles.append(block.register_forward_hook(lambda m, args, output: states.append(output[0].double())))
    model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return states


def test_influence_is_that_of_all_tokens():
    model = deep(6)
    influence = torch.zeros(6, dtype=torch.float64)
    for ids, _ in SEQUENCES:
        states = hidden_states(model, ids)
        for i in range(6):
            x, y = states[i], states[i + 1]
            influence[i] += (1 - (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).sum()
    for count in (1, 3, 5):
        assert choose_blocks(model, statistics_of(model), count) == sorted(influence.argsort()[:count].tolist())
    assert influence.argsort()[:3].tolist() != [0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_angular_distance_is_that_of_the_last_tokens(count):
    model = deep(6)
    distance = torch.zeros(7 - count, dtype=torch.float64)
    for ids, _ in SEQUENCES:
        states = [state[-1] for state in hidden_states(model, ids)]
        for i in range(7 - count):
            x, y = states[i], states[i + count]
            distance[i] += torch.acos(x @ y / (x.norm() * y.norm()))
    first = int(distance.argmin())
    assert choose_blocks(model, statistics_of(model), count, "angular") == list(range(first, first + count))


@pytest.mark.parametrize("measure", ["influence", "angular"])
def test_what_is_left_is_the_other_blocks(measure, tmp_path):
    model, whole = deep(6), deep(6)
    gone = drop_blocks_(model, statistics_of(model), 0.5, measure)
    assert len(gone) == 3
    ids = tiny_tokens(2, 12)
    states = whole.model.embed_tokens(ids)
    position = whole.model.rotary_emb(states, torch.arange(12)[None])
    causal = torch.full((12, 12), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        for index, block in enumerate(whole.model.layers):
            if index not in gone:
                states = block(states, attention_mask=causal, position_embeddings=position)
        expected = whole.lm_head(whole.model.norm(states))
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-4)
        assert torch.allclose(model(input_ids=ids, use_cache=False).logits, expected, atol=1e-4)
    generated = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)  # the cache has the right layers
    uncached = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(generated, uncached)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(decoder_blocks(again)[1]) == 3
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("name", TINY)
def test_blocks_of_every_architecture(name, tmp_path):
    model = tiny_model(name)
    assert len(drop_blocks_(model, statistics_of(model), 0.5)) == 1
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(input_ids=tiny_tokens()).logits, model(input_ids=tiny_tokens()).logits)


@pytest.mark.parametrize("name", TINY)
def test_channels_that_are_left_are_those_of_large_activations(name, tmp_path):
    """Removing a channel is setting it to zero; the result loads as a plain model."""
    model, zeroed = tiny_model(name), tiny_model(name)
    statistics = statistics_of(model)
    total = sum(matrix.parameters for matrix in prunable(model).values())
    left = drop_channels_(model, statistics, 0.7)
    assert 0 < left < 72
    kept = sum(matrix.parameters for matrix in prunable(model).values()) / total
    assert 0.65 < kept <= 0.7
    readers = [zeroed.get_submodule(matrix.name) for matrix in prunable(zeroed).values() if matrix.n == 72]
    inputs = [[] for _ in readers]
    handles = [
        layer.register_forward_pre_hook(lambda layer, args, kept=kept: kept.append(args[0].reshape(-1, 72)))
        for layer, kept in zip(readers, inputs, strict=True)
    ]
    with torch.no_grad():
        for ids, _ in SEQUENCES:
            zeroed(input_ids=torch.tensor([ids]))
    for layer, rows, handle in zip(readers, inputs, handles, strict=True):
        handle.remove()
        gone = torch.cat(rows).square().sum(0).argsort()[: 72 - left]
        layer.register_forward_pre_hook(lambda layer, args, gone=gone: (args[0].index_fill(-1, gone, 0),))
    ids = tiny_tokens(2, 12)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, zeroed(input_ids=ids).logits, atol=1e-4)
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_bad_input():
    model = tiny_model("llama")
    statistics = statistics_of(model)
    for kept in (0, 1.1, float("nan")):
        with pytest.raises(InputError, match="kept fraction"):
            drop_blocks_(model, statistics, kept)
        with pytest.raises(InputError, match="kept fraction"):
            drop_channels_(model, statistics, kept)
    with pytest.raises(InputError, match="the MLPs hold only"):
        drop_channels_(model, statistics, 0.05)
    with pytest.raises(InputError, match="influence, angular"):
        drop_blocks_(model, statistics, 0.5, "magic")
    with pytest.raises(InputError, match="no calibration examples"):
        drop_blocks_(model, collect(model, batches(SEQUENCES, 100)), 0.5)
    with pytest.raises(InputError, match="no sums"):
        drop_channels_(model, collect(model, batches(SEQUENCES, 100), "none"), 0.5)
    assert drop_blocks_(model, statistics, 1) == []
    assert drop_channels_(model, statistics, 1) == 72
