"""The compensating update against optimal brain surgery with an explicit inverse per column, and against its aim."""

import numpy as np
import pytest
import torch

from sieve.compression.masks.config import PATTERNS
from sieve.compression.masks.scores import inverse_root, of_channels, of_weights
from sieve.compression.masks.sparsegpt import BLOCK, sparsegpt
from tests.sieve.compression.masks.data import layer_data, per_token

DAMPING = 0.01


def surgery(W, H, mask):
    """OBS, column by column: a weight that goes is made good for by the columns behind it, by least squares."""
    W, n = W.numpy().copy(), W.shape[1]
    damped = (H + DAMPING * H.diagonal().mean() * torch.eye(n)).numpy()
    for j in range(n):
        inverse = np.linalg.inv(damped[j:, j:])
        gone = np.where(mask[:, j], 0.0, W[:, j])
        W[:, j:] -= np.outer(gone / inverse[0, 0], inverse[0])
        W[:, j] = np.where(mask[:, j], W[:, j], 0.0)
    return W


def solve(W, H, rank, **options):
    channels = of_channels(H, "sparsegpt", DAMPING)
    return sparsegpt(W, channels, inverse_root(H, DAMPING), rank, **options)


@pytest.mark.parametrize(
    ("pattern", "compare", "rank"),
    [("unstructured", "row", 20), ("unstructured", "layer", 20), ("2:4", "row", 20), ("4:8", "row", 20),
     ("unstructured", "row", 1), ("unstructured", "row", 39)],
)  # fmt: skip
def test_update_is_optimal_brain_surgery(pattern, compare, rank):
    W, X = layer_data(7, 40)
    H = per_token(X)
    found = solve(W, H, rank, pattern=pattern, compare=compare)
    mask = found != 0
    assert np.allclose(found.numpy(), surgery(W, H, mask.numpy()), atol=1e-10)
    assert int(mask.sum()) == 7 * rank
    if compare == "row":
        assert (mask.sum(1) == rank).all()
    if PATTERNS[pattern]:
        assert (mask.unflatten(1, (-1, PATTERNS[pattern][1])).sum(-1) == PATTERNS[pattern][0]).all()


def test_one_block_keeps_the_best_scores_of_the_weights_as_they_were():
    W, X = layer_data(7, 40)
    scores = of_weights(W, "sparsegpt") * of_channels(per_token(X), "sparsegpt", DAMPING)
    kept = solve(W, per_token(X), 13) != 0
    for row in range(7):
        assert set(kept[row].nonzero().flatten().tolist()) == set(scores[row].topk(13).indices.tolist())


def test_several_blocks_hear_of_each_other_and_counts_are_exact():
    n = 2 * BLOCK + 44
    W, X = layer_data(5, n, tokens=500)
    H = per_token(X)
    found = solve(W, H, 101)
    assert ((found != 0).sum(1) == 101).all()
    assert np.allclose(found.numpy(), surgery(W, H, (found != 0).numpy()), atol=1e-9)


def test_outputs_change_less_than_by_the_mask_alone():
    W, X = layer_data(16, 48)
    H = per_token(X)
    for rank in (12, 24, 36):
        ours = solve(W, H, rank)
        masked = torch.where(ours != 0, W, 0)
        error, plain = (((W - other) @ H * (W - other)).sum() for other in (ours, masked))
        assert error < 0.9 * plain


def test_float32_and_rounding_to_bfloat16():
    W, X = layer_data(16, 48)
    H = per_token(X)
    channels, R = of_channels(H, "sparsegpt", DAMPING), inverse_root(H, DAMPING)
    exact = sparsegpt(W, channels, R, 24)
    single = sparsegpt(W.float(), channels.float(), R.float(), 24)
    assert torch.allclose(single.double(), exact, atol=1e-4)
    stored = sparsegpt(W.float(), channels.float(), R.float(), 24, dtype=torch.bfloat16)
    assert stored.dtype == torch.bfloat16
    assert ((stored != 0).sum(1) == 24).all()
    rounded = single.bfloat16().double()
    error, plain = (((W - other) @ H * (W - other)).sum() for other in (stored.double(), rounded))
    assert error < 1.02 * plain
