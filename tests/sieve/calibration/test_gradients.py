"""The streamed Grams of gradients against gradients that are kept, on every architecture."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.gradients import answer_loss, column_basis
from sieve.calibration.statistics import Statistics
from sieve.calibration.text import Sample, batches
from sieve.errors import InputError, NumericsError
from sieve.models.linears import prunable, weight_of
from tests.all_architectures import tiny_random
from tests.tiny_models import TINY, tiny_model, tiny_tokens

LENGTHS = (40, 7, 22, 22, 9, 31)
SEQUENCES = [
    Sample(row[:n].tolist(), n - 1 - i % 4) for i, (row, n) in enumerate(zip(tiny_tokens(6, 40), LENGTHS, strict=True))
]


def kept_gradients(model) -> dict[str, torch.Tensor]:
    """Matrix → gradients [tokens, m] of the answers' loss at its outputs, one sequence at a time, in float64."""
    kept = {name: [] for name in prunable(model)}
    for ids, start in SEQUENCES:
        outputs, handles = {}, []
        for name in kept:

            def hook(layer, args, output, name=name, outputs=outputs):
                outputs[name] = output

            handles.append(model.get_submodule(name).register_forward_hook(hook))
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        loss = cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum")
        for handle in handles:
            handle.remove()
        for name, gradient in zip(kept, torch.autograd.grad(loss, [outputs[name] for name in kept]), strict=True):
            kept[name].append(gradient.reshape(-1, gradient.shape[-1]).double())
    return {name: torch.cat(gradients) for name, gradients in kept.items()}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_grams_are_those_of_the_answers_gradients(name, frozen):
    model = tiny_model(name)
    expected = kept_gradients(model)
    model.requires_grad_(not frozen)
    data = batches(SEQUENCES, batch_tokens=100)
    measured = collect(model, data, gradients=True)
    assert measured.tokens == sum(LENGTHS)
    grams = measured.grams
    for matrix, source in measured.sources.items():
        W, g = weight_of(model.get_submodule(matrix)).detach().double(), expected[matrix]
        if W.shape[0] > W.shape[1]:
            g = g @ column_basis(W)[0]
        G = g.T @ g
        assert torch.allclose(grams[source.gradient].double(), G, rtol=1e-3, atol=1e-4 * float(G.abs().max())), matrix
    plain = collect(model, data)
    for key, gram in plain.grams.items():
        assert torch.allclose(grams[key], gram, rtol=1e-4, atol=1e-4)
    for key, sums in plain.sums.items():
        assert torch.allclose(measured.sums[key], sums, rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None and parameter.requires_grad != frozen for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in model.modules())


def test_loss_is_that_of_the_answers_tokens():
    model = tiny_model("llama")
    expected = 0.0
    for ids, start in SEQUENCES:
        logits = model(input_ids=torch.tensor([ids])).logits[0].detach()
        expected += float(cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum"))
    with torch.no_grad():
        found = sum(float(answer_loss(model, batch)) for batch in batches(SEQUENCES, 100))
    assert found == pytest.approx(expected, rel=1e-5)


def test_answers_that_the_budget_cut_off_have_no_loss():
    batch = batches([Sample([5, 6, 7], 3), Sample([5, 6], 4)], 100)[0]
    with torch.no_grad():
        assert float(answer_loss(tiny_model("llama"), batch)) == 0
    with pytest.raises(NumericsError, match="no token of a right answer is in the calibration data"):
        collect(tiny_model("llama"), [batch], gradients=True)


def test_a_model_without_a_gradient_is_told_why():
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # tied: the embeddings too
    with pytest.raises(NumericsError, match=r"2 answer tokens .* have no gradient at any matrix: .* --dtype"):
        collect(model, batches([Sample([5, 6, 7], 1)], 100), gradients=True)


def test_an_architecture_that_gives_no_gradients_is_refused():
    """Reformer's reversible layers, outside of training."""
    model, data = tiny_random("reformer"), batches([Sample(tiny_tokens(1, 24)[0].tolist(), 20)], 256)
    with pytest.raises(InputError, match="gives no gradients in evaluation mode: use --search uniform"):
        collect(model, data, gradients=True)


def test_column_basis_is_unique():
    W = torch.randn(9, 4, dtype=torch.float64)
    Q, R = column_basis(W)
    assert torch.allclose(Q @ R, W)
    assert torch.allclose(Q.T @ Q, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert (R.diagonal() > 0).all()
    assert torch.allclose(column_basis(W.float())[0].double(), Q, atol=1e-5)


def test_gradients_that_overflow_name_the_layer():
    """The answer's loss is infinite where its logits are."""
    model = tiny_model("llama")
    model.model.norm.weight.data[0] = float("inf")
    with pytest.raises(NumericsError, match=r"gradients of model\.layers\.0\.self_attn\.q_proj"):
        collect(model, batches(SEQUENCES, 100), gradients=True)


def test_calibrate_holds_examples_back_and_stores_them(world, tmp_path):
    model, tokenizer = sieve.load_model(world.model)
    file = tmp_path / "statistics.safetensors"
    statistics = sieve.calibrate(model, tokenizer, world.task, tokens=1000, method="loss_aware", path=file)
    held = sum(len(ids) for ids, _ in statistics.held_back)
    assert statistics.tokens + held == 1000
    assert 0.05 < held / 1000 < 0.2
    again = Statistics.load(file)
    assert again.held_back == statistics.held_back
    assert again.samples == statistics.samples
    assert sum(len(ids) for ids, _ in again.samples) == again.tokens
    assert again.sources == statistics.sources
    for which in ("grams", "sums"):
        stored, kept = getattr(again, which), getattr(statistics, which)
        assert stored.keys() == kept.keys()
        assert all(torch.equal(stored[key], kept[key]) for key in kept)
    with pytest.raises(InputError, match="of another data and kind"):
        sieve.calibrate(model, tokenizer, world.task, tokens=1000, path=file)
