"""The closed form against Eckart-Young, computed independently by an SVD of the outputs."""

import pytest
import torch

from sieve.compression.low_rank.output_aligned import output_aligned

SHAPES = [(24, 24), (12, 32), (32, 12)]


def data(m: int, n: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """W [m, n] and inputs X [n, tokens] whose directions differ in size, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(m, n, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -1.5, n, dtype=torch.float64)[:, None]
    mixing, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return W, mixing @ (scale * torch.randn(n, tokens, generator=generator, dtype=torch.float64))


def solve(W: torch.Tensor, X: torch.Tensor, side: str = "input"):
    rows = X if side == "input" else W @ X
    gram = (rows @ rows.T).float().double()  # statistics arrive in float32
    return output_aligned(W, gram, side, X.shape[1])


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("tokens", [200, 8])
def test_attains_the_eckart_young_optimum_at_every_rank(m, n, side, tokens):
    """Also with fewer tokens than dimensions, where C is singular."""
    W, X = data(m, n, tokens)
    A, B, energy = solve(W, X, side)
    Y = W @ X
    singular = torch.linalg.svdvals(Y)
    total = (Y**2).sum()
    for rank in range(1, min(m, n) + 1):
        error = ((Y - B[:, :rank] @ (A[:rank] @ X)) ** 2).sum()
        optimum = (singular[rank:] ** 2).sum()
        assert error <= optimum + 1e-6 * total
        assert energy[rank:].sum() == pytest.approx(float(optimum), abs=1e-5 * float(total))


@pytest.mark.parametrize("tokens", [200, 20, 8])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_singular_covariance_from_repeated_tokens(m, n, tokens):
    W, X = data(m, n, 4)
    A, B, _ = solve(W, X.repeat(1, tokens // 4))
    assert torch.allclose(B[:, :4] @ (A[:4] @ X), W @ X, atol=1e-5)
    assert torch.allclose(B @ A, W, atol=1e-10)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_prefix_is_the_solution_of_the_smaller_rank(m, n):
    """Rank-q slices equal an independent solution for q: the truncated SVD of the outputs, mapped back through W."""
    W, X = data(m, n, 300)
    A, B, _ = solve(W, X)
    U, _, _ = torch.linalg.svd(W @ X, full_matrices=False)
    for q in (1, 5, 11):
        assert torch.allclose(B[:, :q] @ A[:q], U[:, :q] @ U[:, :q].T @ W, atol=1e-4)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_all_ranks_reconstruct_the_matrix(m, n):
    W, X = data(m, n, 100)
    A, B, _ = solve(W, X)
    assert torch.allclose(B @ A, W, atol=1e-10)
    assert torch.allclose(B.T @ B, torch.eye(min(m, n), dtype=torch.float64), atol=1e-10)


def test_no_rank_r_map_found_by_descent_is_better():
    """Gradient descent on the same objective, started at the closed form and at random, can at best tie it."""
    W, X = data(12, 16, 100)
    rank, Y = 4, W @ X
    A, B, energy = solve(W, X)
    optimum = float(((Y - B[:, :rank] @ A[:rank] @ X) ** 2).sum())
    for start in ("closed form", "random"):
        a, b = A[:rank].clone(), B[:, :rank].contiguous()
        if start == "random":
            a.normal_(generator=torch.Generator().manual_seed(1))
            b.normal_(generator=torch.Generator().manual_seed(2))
        a.requires_grad_()
        b.requires_grad_()
        optimizer = torch.optim.LBFGS([a, b], max_iter=200, line_search_fn="strong_wolfe")

        def loss(a=a, b=b):
            a.grad = b.grad = None
            value = ((Y - b @ a @ X) ** 2).sum()
            value.backward()
            return value

        optimizer.step(loss)
        assert loss().item() >= optimum * (1 - 1e-6)
    assert optimum == pytest.approx(float(energy[rank:].sum()), rel=1e-4)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_few_tokens_held_back_error_is_no_worse_than_unordered(m, n):
    """Beyond the rank of the data the order of directions is free: ours must not lose to eigh's own on new tokens."""
    ours, unordered = 0.0, 0.0
    for seed in range(5):
        W, X = data(m, n, 60, seed)
        seen, new = X[:, :6], X[:, 6:]
        A, B, _ = solve(W, seen)
        Y = W @ seen
        _, U = torch.linalg.eigh(Y @ Y.T)
        U = U.flip(1)
        for rank in range(6, min(m, n)):
            ours += float(((W @ new - B[:, :rank] @ A[:rank] @ new) ** 2).sum())
            unordered += float(((W @ new - U[:, :rank] @ U[:, :rank].T @ W @ new) ** 2).sum())
    assert ours <= unordered


def test_no_data_at_all_orders_by_the_weights():
    """A zero Gram (a dead input) leaves the SVD of W."""
    W, _ = data(10, 14, 1)
    A, B, energy = output_aligned(W, torch.zeros(14, 14, dtype=torch.float64), "input", 100)
    singular = torch.linalg.svdvals(W)
    assert float(((W - B[:, :5] @ A[:5]) ** 2).sum()) == pytest.approx(float((singular[5:] ** 2).sum()))
    assert not energy.any()
