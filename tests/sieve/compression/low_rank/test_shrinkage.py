"""Shrinking Gram matrices toward a prior, and choosing how far on examples that were not summed."""

import pytest
import torch

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.compression.low_rank import shrinkage
from sieve.compression.low_rank.output_aligned import output_aligned
from sieve.compression.low_rank.problem import problem_of
from sieve.compression.plan import Plan
from sieve.errors import InputError, NumericsError
from sieve.models.linears import prunable, weight_of
from tests.tiny_models import tiny_model, tiny_tokens

SEQUENCES = [Sample(ids, 20) for ids in tiny_tokens(16, 24).tolist()]


def statistics_of(model, sequences=SEQUENCES, needs="cheapest", **more):
    statistics = collect(model, batches(sequences, 512), needs, **more)
    statistics.samples = list(sequences)
    return statistics


@pytest.fixture(scope="module")
def calibrated():
    model = tiny_model("llama")
    return model, statistics_of(model)


@pytest.mark.parametrize("needs", ["cheapest", "input"])
def test_problem_is_that_of_the_shrunk_inputs(calibrated, needs):
    """Also where outputs were watched: W diag(C) Wᵀ."""
    model, _ = calibrated
    statistics, whole = statistics_of(model, needs=needs), statistics_of(model, needs="input")
    for name in prunable(model):
        W = weight_of(model.get_submodule(name)).detach()
        C = whole.grams[whole.sources[name].gram].double()
        expected = W.double() @ (0.7 * C + 0.3 * torch.diag(C.diagonal())) @ W.double().T
        found = problem_of(name, W, statistics, shrinkage=0.3).output_gram
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())), name


def test_prior_of_other_data_counts_as_many_tokens(calibrated):
    model, statistics = calibrated
    general = statistics_of(model, [Sample(ids, 1) for ids in tiny_tokens(40, 24, seed=9).tolist()])
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        W, source = weight_of(model.get_submodule(name)), statistics.sources[name]
        expected = 0.8 * statistics.grams[source.gram] + 0.2 * general.grams[source.gram] * 16 / 40
        found = problem_of(name, W, statistics, shrinkage=0.2, prior=general).gram
        assert torch.allclose(found.float(), expected, rtol=1e-5)
    factors = sieve.project(model, statistics, shrinkage=0.2, prior=general)
    assert factors.shrinkage == 0.2


def test_limits(calibrated):
    """No share is the projection itself; all of it that of uncorrelated channels."""
    model, statistics = calibrated
    plain, none, all_of_it = (sieve.project(model, statistics, shrinkage=s) for s in (None, 0, 1.0))
    assert all(torch.equal(plain[name].A, none[name].A) for name in plain)
    name = "model.layers.1.mlp.down_proj"
    W = weight_of(model.get_submodule(name)).detach().double()
    squares = statistics.sums[statistics.sources[name].inputs][2].double()
    A, B, _ = output_aligned(W, torch.diag(squares), "input", 10**6)
    pair = all_of_it[name]
    assert torch.allclose(pair.B[:, :6] @ pair.A[:6], (B[:, :6] @ A[:6]).float(), atol=1e-3)


def test_what_is_held_back_is_taken_out_of_the_sums(calibrated):
    model, statistics = calibrated
    known, held = shrinkage.split(model, statistics)
    assert held == SEQUENCES[-2:]
    expected = statistics_of(model, SEQUENCES[:-2])
    assert (known.tokens, known.samples) == (expected.tokens, SEQUENCES[:-2])
    for key, gram in expected.grams.items():
        assert torch.allclose(known.grams[key], gram, rtol=1e-3, atol=1e-3 * float(gram.abs().max()))
    for key, sums in expected.sums.items():
        assert torch.allclose(known.sums[key], sums, rtol=1e-3, atol=1e-3 * float(sums.abs().max()))
    statistics.held_back = SEQUENCES[:1]
    assert shrinkage.split(model, statistics) == (statistics, SEQUENCES[:1])
    statistics.held_back = []


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_output_errors_are_those_at_the_dense_models_inputs(name):
    """Biases and padding left out; the means of centred pairs (those with a bias) count."""
    model = tiny_model(name)
    statistics = statistics_of(model)
    matrices = prunable(model)
    ranks = Plan.uniform(matrices.values(), 0.4).ranks()
    candidates = [sieve.project(model, statistics)]
    candidates.append(dict(candidates[0]))
    texts = [Sample(ids[:length], 1) for (ids, _), length in zip(SEQUENCES, (24, 5, 17), strict=False)]
    kept = {matrix: [] for matrix in matrices}
    for matrix, rows in kept.items():
        model.get_submodule(matrix).register_forward_pre_hook(
            lambda layer, args, rows=rows: rows.append(args[0].reshape(-1, args[0].shape[-1]))
        )
    with torch.no_grad():
        for ids, _ in texts:
            model(input_ids=torch.tensor([ids]))
    expected = []
    for matrix, rank in ranks.items():
        X, W = torch.cat(kept[matrix]), weight_of(model.get_submodule(matrix)).detach()
        pair = candidates[0][matrix]
        A, B = pair.slice(rank)
        found = X @ A.T @ B.T if pair.mean is None else (X - pair.mean) @ A.T @ B.T + W @ pair.mean
        assert (pair.mean is None) == (name == "llama")
        expected.append(float(((X @ W.T - found) ** 2).sum() / ((X @ W.T) ** 2).sum()))
    found = shrinkage.output_errors(model, texts, candidates, ranks)
    assert found == pytest.approx([sum(expected) / len(expected)] * 2, rel=1e-4)


@pytest.mark.parametrize(
    ("errors", "chosen"), [([3, 2, 1, 4, 5], 0.03), ([1, 1, 1, 1, 1], 0), ([float("nan"), 2, 3, 4, 5], 0.01)]
)
def test_the_share_with_the_least_held_back_error_is_taken(calibrated, monkeypatch, errors, chosen):
    model, statistics = calibrated
    monkeypatch.setattr(shrinkage, "output_errors", lambda *arguments: errors)
    asked = []
    monkeypatch.setattr(shrinkage, "collect", lambda *arguments: statistics)
    found = shrinkage.choose_shrinkage(model, statistics, lambda share, known, ranks: asked.append(share))
    assert (found, tuple(asked)) == (chosen, shrinkage.SHARES)


def test_few_tokens_gain_by_it():
    """Of 60 tokens, fewer than channels: the choice is not zero, and errs less on new tokens."""
    model = tiny_model("llama")
    few = statistics_of(model, [Sample(ids, 1) for ids in tiny_tokens(5, 12, seed=4).tolist()])
    new = [Sample(ids, 1) for ids in tiny_tokens(30, 12, seed=5).tolist()]
    ours = sieve.project(model, few, shrinkage="auto")
    assert ours.shrinkage > 0
    ranks = Plan.uniform(prunable(model).values(), 0.5).ranks()
    shrunk, plain = shrinkage.output_errors(model, new, [ours, sieve.project(model, few)], ranks)
    assert shrunk < plain


def test_loss_aware_shrinks_too():
    model = tiny_model("llama")
    statistics = statistics_of(model, gradients=True)
    statistics.held_back = SEQUENCES[:3]
    factors = sieve.project(model, statistics, "loss_aware", shrinkage="auto")
    assert factors.shrinkage in shrinkage.SHARES


def test_bad_input(calibrated, monkeypatch):
    model, statistics = calibrated
    for share in (-0.1, 1.5, float("nan"), True, "some"):
        with pytest.raises(InputError, match="shrinkage must be"):
            sieve.project(model, statistics, shrinkage=share)
    with pytest.raises(InputError, match="a prior has no weight without shrinkage"):
        sieve.project(model, statistics, prior=statistics)
    one = statistics_of(model, SEQUENCES[:1])
    with pytest.raises(InputError, match="too few"):
        sieve.project(model, one, shrinkage="auto")
    with pytest.raises(InputError, match="calibrate it with the same method"):
        sieve.project(model, statistics, shrinkage=0.1, prior=statistics_of(model, needs="input"))
    monkeypatch.setitem(one.grams, "model.layers.0.self_attn.q_proj", one.grams["model.layers.0.self_attn.q_proj"] / 0)
    with pytest.raises(NumericsError, match=r"prior's statistics of model\.layers\.0\.self_attn\.q_proj"):
        sieve.project(model, statistics, shrinkage=0.1, prior=one)
    monkeypatch.setattr(statistics, "sums", {})
    with pytest.raises(InputError, match="sums of inputs"):
        sieve.project(model, statistics, shrinkage=0.1)
