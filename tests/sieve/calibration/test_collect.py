"""The streamed Grams against Grams of stored activations, on every architecture."""

import pytest
import torch

from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.errors import DeviceError, InputError, NumericsError
from sieve.models.decoder import decoder_blocks
from sieve.models.linears import prunable
from tests.sieve.models.test_halving import small_memory, small_memory_backward
from tests.tiny_models import TINY, tiny_model, tiny_tokens

LENGTHS = (40, 7, 22, 22, 3, 31)
SEQUENCES = [Sample(row[:n].tolist(), n // 2) for row, n in zip(tiny_tokens(6, 40), LENGTHS, strict=True)]


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
    measured = collect(model, batches(SEQUENCES, batch_tokens=100), needs)
    assert measured.tokens == sum(LENGTHS)
    assert list(measured.sources) == list(expected)
    for matrix, source in measured.sources.items():
        inputs, outputs = expected[matrix]
        rows = inputs if source.side == "input" else outputs
        assert needs == "cheapest" or source.side == "input"
        gram = measured.grams[source.gram].double()
        assert torch.allclose(gram, rows.T @ rows, rtol=1e-4, atol=1e-4), (matrix, source)
        sums = torch.stack([inputs.sum(0), inputs.abs().sum(0), inputs.square().sum(0)])
        assert torch.allclose(measured.sums[source.inputs].double(), sums, rtol=1e-4, atol=1e-4), (matrix, source)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_inputs_are_shared_and_the_cheaper_side_is_taken():
    """Llama: q, k, v share one input Gram; gate, up another; down_proj's outputs are narrower than its inputs."""
    measured = collect(tiny_model("llama"), batches(SEQUENCES, 100))
    block = {name.split(".", 3)[3]: source for name, source in measured.sources.items() if ".layers.0." in name}
    assert block["self_attn.q_proj"] == block["self_attn.k_proj"] == block["self_attn.v_proj"]
    assert block["mlp.gate_proj"] == block["mlp.up_proj"]
    assert block["mlp.down_proj"].side == "output"
    assert len(measured.grams) == len(measured.sums) == 2 * 4
    assert all(gram.shape == (32, 32) for gram in measured.grams.values())


def test_input_grams_of_every_matrix_where_a_method_needs_them():
    measured = collect(tiny_model("llama"), batches(SEQUENCES, 100), "input")
    assert len(measured.grams) == 2 * 4
    down = measured.sources["model.layers.1.mlp.down_proj"]
    assert (down.side, measured.grams[down.gram].shape) == ("input", (72, 72))
    for source in measured.sources.values():
        squares = measured.sums[source.inputs][2]
        assert torch.allclose(measured.grams[source.gram].diagonal(), squares, rtol=1e-4)


def test_padding_does_not_count_whatever_it_holds():
    """NaN on padding, as attention without a token to look at leaves it."""
    model = tiny_model("llama")
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    expected = collect(model, batches(SEQUENCES, 100), "input")
    masks = iter([batch.mask for batch in batches(SEQUENCES, 100)])

    def spoil(layer, args):
        if args[0].shape[1] > 8:  # not when the readers of inputs are looked for
            return (args[0].masked_fill(next(masks)[..., None] == 0, float("nan")),)

    handle = layer.register_forward_pre_hook(spoil)
    measured = collect(model, batches(SEQUENCES, 100), "input")
    handle.remove()
    key = "model.layers.1.mlp.down_proj"
    assert torch.allclose(measured.grams[key], expected.grams[key], rtol=1e-5)
    assert torch.allclose(measured.sums[key], expected.sums[key], rtol=1e-5)


def test_texts_alone_need_no_pass():
    measured = collect(tiny_model("llama"), batches(SEQUENCES, 100), "none")
    assert (measured.grams, measured.sums, measured.tokens) == ({}, {}, sum(LENGTHS))
    assert list(measured.sources) == list(prunable(tiny_model("llama")))


def test_fused_matrices_count_as_one():
    names = {name.rsplit(".", 1)[1] for name in prunable(tiny_model("phi3"))}
    assert names == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_dropout_is_off_while_calibrating_and_the_mode_is_restored():
    model = tiny_model("gpt2").train()
    first, second = (collect(model, batches(SEQUENCES, 100)).grams for _ in range(2))
    assert model.training
    assert all(torch.equal(first[key], second[key]) for key in first)


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
    assert batches([Sample([1] * 500, 1)], batch_tokens=64)[0].ids.shape == (1, 500)


class TestTooLittleMemory:
    """Every row is in every sum once, although passes broke off after the first layers had taken it in."""

    def same(self, one, two):
        for kind in ("grams", "sums", "importance"):
            before, after = getattr(one, kind), getattr(two, kind)
            assert before.keys() == after.keys()
            for key, value in before.items():
                torch.testing.assert_close(value, after[key], rtol=1e-4, atol=1e-4 * float(value.abs().max()), msg=key)

    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    @pytest.mark.parametrize("cells", [45, 90])
    def test_forward(self, name, cells):
        model = tiny_model(name)
        want = collect(model, batches(SEQUENCES, 250))
        for block in (0, 1):
            with small_memory(decoder_blocks(model)[1][block], cells) as refused:
                got = collect(model, batches(SEQUENCES, 250))
            assert refused
            self.same(want, got)

    @pytest.mark.parametrize("cells", [45, 90])
    def test_backward(self, cells):
        """Sums of the forward pass are whole then, and of the backward pass those of the last block."""
        model, data = tiny_model("llama"), batches(SEQUENCES, 250)
        channels = [name for name in prunable(model) if "down_proj" in name]
        want = collect(model, data, gradients=True, channels=channels)
        for memory in (small_memory, small_memory_backward):
            with memory(decoder_blocks(model)[1][1 if memory is small_memory else 0], cells) as refused:
                got = collect(model, data, gradients=True, channels=channels)
            assert refused
            self.same(want, got)

    def test_a_sum_that_may_be_written_in_part_ends_the_run(self, monkeypatch):
        def broken(*args):
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr("sieve.calibration.collect.gram_", broken)
        with pytest.raises(DeviceError, match=r"statistics of model\.layers\.0"):
            collect(tiny_model("llama"), batches(SEQUENCES, 250))
