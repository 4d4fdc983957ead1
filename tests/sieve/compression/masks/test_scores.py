"""Base scores against the papers' formulas, written out one weight at a time."""

import math

import numpy as np
import pytest
import torch

from sieve.compression.masks.scores import FLOOR, inverse_root, of_channels, of_weights
from tests.sieve.compression.masks.data import layer_data, per_token

M, N = 6, 9


def scores(method, W, X, damping=0.01):
    return of_weights(W, method) * of_channels(per_token(X), method, damping)


def test_magnitude():
    W, X = layer_data(M, N)
    assert torch.equal(scores("magnitude", W, X), W.abs())


def test_wanda_is_the_square_of_weight_times_activation_norm():
    W, X = layer_data(M, N)
    found = scores("wanda", W, X)
    for i in range(M):
        for j in range(N):
            norm = math.sqrt(sum(x * x for x in X[:, j].tolist()))
            assert found[i, j] * len(X) == pytest.approx((abs(float(W[i, j])) * norm) ** 2)


def test_ria_is_relative_importance_times_the_root_of_the_activation_norm():
    W, X = layer_data(M, N)
    found = scores("ria", W, X)
    size = np.abs(W.numpy())
    for i in range(M):
        for j in range(N):
            relative = size[i, j] / sum(size[i, k] for k in range(N)) + size[i, j] / sum(size[k, j] for k in range(M))
            norm = np.linalg.norm(X[:, j].numpy())
            assert found[i, j] * len(X) ** 0.25 == pytest.approx(relative * norm**0.5)


def test_sparsegpt_is_the_rise_of_the_error_when_later_columns_make_good():
    """W_ij² / R_jj² is by how much |(w - w') X|² grows when w'_j = 0 and the columns behind j are refitted."""
    W, X = layer_data(M, N)
    H = per_token(X)
    damped = (H + 0.01 * H.diagonal().mean() * torch.eye(N)).numpy()
    found = scores("sparsegpt", W, X)
    for j in range(N):
        later = np.arange(j + 1, N)
        for i in range(M):
            change = np.zeros(N)
            change[j] = -float(W[i, j])
            if len(later):  # least squares over the columns behind
                change[later] = -np.linalg.solve(damped[np.ix_(later, later)], damped[later, j] * change[j])
            assert found[i, j] == pytest.approx(change @ damped @ change)


def test_inverse_root_is_upper_triangular_and_squares_to_the_inverse():
    H = per_token(layer_data(M, N)[1])
    R = inverse_root(H, 0.05)
    assert torch.equal(R, R.triu())
    assert torch.allclose(R.T @ R @ (H + 0.05 * H.diagonal().mean() * torch.eye(N)), torch.eye(N, dtype=H.dtype))


@pytest.mark.parametrize("damping", [1e-9, 0.01])
@pytest.mark.parametrize("tokens", [3, 1])
def test_singular_statistics_are_no_special_case(tokens, damping):
    W, X = layer_data(M, N, tokens)
    H = per_token(X).float().double()  # sums arrive in float32
    for method in ("wanda", "ria", "sparsegpt"):
        found = of_weights(W, method) * of_channels(H, method, damping)
        assert torch.isfinite(found).all()
        assert (found > 0).all()


def test_channels_without_input_go_first_and_their_smallest_weights_before_all():
    W, X = layer_data(M, N)
    X[:, [2, 5]] = 0
    for method in ("wanda", "ria", "sparsegpt"):
        found = scores(method, W, X)
        dead, alive = found[:, [2, 5]], found[:, [0, 1, 3, 4, 6, 7, 8]]
        if method != "sparsegpt":  # damping gives them λ, more than a channel of less than λ has
            assert dead.max() < alive.min()
        assert torch.equal(dead[0].argsort(), W[0, [2, 5]].abs().argsort()) or method == "ria"
    assert 0 < FLOOR < 1e-6


def test_no_input_at_all_leaves_the_weights_to_decide():
    H = torch.zeros(N, N, dtype=torch.float64)
    for method in ("wanda", "ria", "sparsegpt"):
        assert torch.equal(of_channels(H, method, 0.01), torch.ones(N, dtype=torch.float64))
    assert torch.equal(inverse_root(H, 0.01), torch.eye(N, dtype=torch.float64))
    assert torch.isfinite(of_weights(torch.zeros(M, N), "ria")).all()


def test_scores_do_not_depend_on_the_number_of_tokens():
    W, X = layer_data(M, N)
    for method in ("wanda", "ria", "sparsegpt"):
        assert torch.allclose(scores(method, W, X), scores(method, W, X.repeat(7, 1)))
