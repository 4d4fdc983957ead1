"""The streamed Grams against Grams of stored activations, on every architecture."""

import pytest
import torch

from sieve.calibration.collect import collect
from sieve.calibration.text import Text, batches
from sieve.errors import InputError, NumericsError
from sieve.matrices import prunable
from tests.tiny_models import TINY, tiny_model, tiny_tokens

LENGTHS = (40, 7, 22, 22, 3, 31)
SEQUENCES = [Text(row[:n].tolist(), n // 2) for row, n in zip(tiny_tokens(6, 40), LENGTHS, strict=True)]


def stored_activations(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Matrix → its inputs [tokens, n] and bias-free outputs [tokens, m], one sequence at a time, in float64."""
    kept = {name: ([], []) for name in prunable(model)}
    handles = []
    for name, (inputs, outputs) in kept.items():

        def hook(layer, args, output, inputs=inputs, outputs=outputs):
            inputs.append(args[0].reshape(-1, args[0].shape[-1]).double())
            free = output if layer.bias is None else output - layer.bias
            outputs.append(free.reshape(-1, output.shape[-1]).double())

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    with torch.inference_mode():
        for ids, _ in SEQUENCES:
            model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: (torch.cat(inputs), torch.cat(outputs)) for name, (inputs, outputs) in kept.items()}


@pytest.mark.parametrize("needs", ["cheapest", "input"])
@pytest.mark.parametrize("name", TINY)
def test_grams_are_those_of_the_tokens_without_padding(name, needs):
    model = tiny_model(name)
    expected = stored_activations(model)
    grams, sources, tokens = collect(model, batches(SEQUENCES, batch_tokens=100), needs)
    assert tokens == sum(LENGTHS)
    assert list(sources) == list(expected)
    for matrix, source in sources.items():
        rows = expected[matrix][0 if source.side == "input" else 1]
        assert needs == "cheapest" or source.side == "input"
        assert torch.allclose(grams[source.gram].double(), rows.T @ rows, rtol=1e-4, atol=1e-4), (matrix, source)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_inputs_are_shared_and_the_cheaper_side_is_taken():
    """Llama: q, k, v share one input Gram; gate, up another; down_proj's outputs are narrower than its inputs."""
    grams, sources, _ = collect(tiny_model("llama"), batches(SEQUENCES, 100))
    block = {name.split(".", 3)[3]: source for name, source in sources.items() if ".layers.0." in name}
    assert block["self_attn.q_proj"] == block["self_attn.k_proj"] == block["self_attn.v_proj"]
    assert block["mlp.gate_proj"] == block["mlp.up_proj"]
    assert block["mlp.down_proj"].side == "output"
    assert len(grams) == 2 * 4
    assert all(gram.shape == (32, 32) for gram in grams.values())


def test_fused_matrices_count_as_one():
    names = {name.rsplit(".", 1)[1] for name in prunable(tiny_model("phi3"))}
    assert names == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_dropout_is_off_while_calibrating_and_the_mode_is_restored():
    model = tiny_model("gpt2").train()
    first, sources, _ = collect(model, batches(SEQUENCES, 100))
    second, _, _ = collect(model, batches(SEQUENCES, 100))
    assert model.training
    assert all(torch.equal(first[source.gram], second[source.gram]) for source in sources.values())


def test_nan_weights_name_the_first_layer_that_sees_them():
    model = tiny_model("llama")
    model.get_submodule("model.layers.1.self_attn.o_proj").weight.data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.gate_proj"):
        collect(model, batches(SEQUENCES, 100))


def test_nothing_to_prune():
    model = tiny_model("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(InputError, match="nothing to prune"):
        collect(model, batches(SEQUENCES, 100))


def test_batches_hold_every_sequence_within_the_limit():
    data = batches(SEQUENCES, batch_tokens=64)
    assert sorted(int(n) for batch in data for n in batch.mask.sum(1)) == sorted(LENGTHS)
    assert all(batch.ids.numel() <= 64 for batch in data)
    assert batches([Text([1] * 500, 1)], batch_tokens=64)[0].ids.shape == (1, 500)
