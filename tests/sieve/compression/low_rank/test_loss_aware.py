"""The loss-aware closed form against its objective, computed independently; its limits; how its ridge is chosen."""

import math

import pytest
import torch

import sieve
from sieve.calibration.gradients import column_basis
from sieve.compression.low_rank.loss_aware import loss_aware
from sieve.compression.low_rank.output_aligned import output_aligned
from sieve.compression.low_rank.ridge import RIDGES, choose_ridge
from sieve.errors import InputError, NumericsError
from sieve.models.linears import prunable
from tests.sieve.compression.low_rank.test_output_aligned import SHAPES, data


def problem(m: int, n: int, tokens: int = 100, seen: int = 60, seed: int = 0):
    """W, X, the gradients' Gram G [m, m], and what of it the method is given."""
    W, X = data(m, n, tokens, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    scale = torch.logspace(0, -2, m, dtype=torch.float64)[torch.randperm(m, generator=generator)]
    g = torch.randn(seen, m, generator=generator, dtype=torch.float64) * scale
    G = g.T @ g
    Q = column_basis(W)[0] if m > n else torch.eye(m, dtype=torch.float64)
    return W, X, G, Q.T @ G @ Q


def solve(W, X, given, ridge, side="input"):
    rows = X if side == "input" else W @ X
    return loss_aware(W, rows @ rows.T, side, X.shape[1], given, ridge)


def root(H: torch.Tensor, power: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(H)
    return vectors * values.clamp(min=0) ** power @ vectors.T


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_attains_the_optimum_of_its_objective_at_every_rank(m, n, ridge, side):
    """M = H^-½ U Uᵀ H^½ W, U from an SVD of H^½ W X, in the full space of outputs: every prefix is that solution."""
    W, X, G, given = problem(m, n)
    A, B, energy = solve(W, X, given, ridge, side)
    H = G / given.diagonal().mean() + ridge * torch.eye(m, dtype=torch.float64)
    half, inverse = root(H, 0.5), root(H, -0.5)
    U, singular, _ = torch.linalg.svd(half @ W @ X, full_matrices=False)
    total = float((singular**2).sum())
    for rank in range(1, min(m, n) + 1):
        M = B[:, :rank] @ A[:rank]
        error = float(((half @ (W - M) @ X) ** 2).sum())
        optimum = float((singular[rank:] ** 2).sum())
        assert error == pytest.approx(optimum, abs=1e-9 * total)
        assert float(energy[rank:].sum()) == pytest.approx(optimum, abs=1e-9 * total)
        if rank < min(m, n):
            expected = inverse @ U[:, :rank] @ U[:, :rank].T @ half @ W
            assert torch.allclose(M @ X, expected @ X, atol=1e-7)
    assert torch.allclose(B @ A, W, atol=1e-8)


def test_no_map_found_by_descent_is_better():
    W, X, G, given = problem(10, 14)
    rank, H = 4, G / given.diagonal().mean() + 0.1 * torch.eye(10, dtype=torch.float64)
    energy = solve(W, X, given, 0.1)[2]
    a = torch.randn(rank, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    b = torch.randn(10, rank, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([a, b], max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        a.grad = b.grad = None
        E = (W - b @ a) @ X
        value = (E * (H @ E)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    optimum = float(energy[rank:].sum())
    assert optimum * (1 - 1e-6) <= loss().item() <= optimum * 1.05


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_a_large_ridge_is_the_output_aligned_projection(m, n, side):
    W, X, _, given = problem(m, n)
    rows = X if side == "input" else W @ X
    expected = output_aligned(W, rows @ rows.T, side, X.shape[1])
    for ridge, gradient in ((1e9, given), (math.inf, given), (0.1, torch.zeros_like(given))):
        A, B, _ = solve(W, X, gradient, ridge, side)
        for rank in (1, 5, 11):
            assert torch.allclose(B[:, :rank] @ A[:rank], expected[1][:, :rank] @ expected[0][:rank], atol=1e-6)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("ridge", [1e-300, 1e-9])
def test_gradients_of_one_direction_and_hardly_a_ridge(m, n, ridge):
    """G has rank one, as after a single answer, and fewer tokens than dimensions: H is inverted no further than G is
    known, and what the gradient sees is kept."""
    W, X, G, given = problem(m, n, tokens=6, seen=1)
    A, B, _ = solve(W, X, given, ridge)
    E = W @ X - B[:, :2] @ A[:2] @ X
    assert float((E * (G @ E)).sum()) < 1e-5 * float(((W @ X) * (G @ W @ X)).sum())
    assert torch.allclose(B @ A, W, atol=1e-6)


def test_ridge_must_be_positive():
    W, X, _, given = problem(12, 32)
    for ridge in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="positive"):
            solve(W, X, given, ridge)


@pytest.mark.parametrize(
    ("losses", "chosen", "tried"),
    [
        ([3.0, 2.0, 1.0, 0.5], 0.1, 4),
        ([3.0, 2.0, 2.5, 0.5], 10.0, 3),
        ([3.0, 3.0], math.inf, 2),
        ([3.0, math.nan], math.inf, 2),
    ],
)
def test_ridge_with_the_least_held_back_loss_is_taken(monkeypatch, losses, chosen, tried):
    """From large to small until the loss grows; where gradients do not help, none are used."""
    asked = []
    monkeypatch.setattr(
        "sieve.compression.low_rank.ridge._loss", lambda model, statistics, factors, plan: losses[len(asked) - 1]
    )
    assert choose_ridge(None, None, {}, lambda ridge, ranks: asked.append(ridge)) == chosen
    assert asked == list(RIDGES[:tried])


@pytest.fixture(scope="module")
def calibrated(world):
    model, tokenizer = sieve.load_model(world.model)
    return model, sieve.calibrate(model, tokenizer, world.task, tokens=1000, method="loss_aware")


class TestModel:
    def test_project(self, calibrated):
        model, statistics = calibrated
        factors = sieve.project(model, statistics, method="loss_aware")
        assert factors.ridge in RIDGES
        assert factors.method == "loss_aware"
        assert list(factors) == list(prunable(model))
        plain = sieve.project(model, statistics, method="output_aligned")
        assert plain.ridge == math.inf

    def test_statistics_without_gradients(self, calibrated, world):
        model, _ = calibrated
        _, tokenizer = sieve.load_model(world.model)
        plain = sieve.calibrate(model, tokenizer, world.task, tokens=1000)
        with pytest.raises(InputError, match="method='loss_aware'"):
            sieve.project(model, plain, method="loss_aware")

    @pytest.mark.parametrize("which", ["gram", "gradient"])
    def test_statistics_that_are_not_finite_name_the_matrix(self, calibrated, which, monkeypatch):
        model, statistics = calibrated
        name = "model.layers.1.self_attn.o_proj"
        key = getattr(statistics.sources[name], which)
        monkeypatch.setitem(statistics.grams, key, statistics.grams[key] * math.nan)
        with pytest.raises(NumericsError, match=r"layers\.1\.self_attn\.o_proj"):
            sieve.project(model, statistics, method="loss_aware")
