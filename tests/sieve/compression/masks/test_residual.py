"""A pair and a mask together against either alone at the same number of weights, and at the ends."""

import pytest
import torch

from sieve.compression.low_rank.output_aligned import output_aligned
from sieve.compression.masks.residual import low_rank_plus_mask
from sieve.compression.masks.scores import inverse_root, of_channels
from sieve.compression.masks.sparsegpt import sparsegpt
from tests.sieve.compression.masks.data import layer_data, per_token

M, N = 48, 48


def error(W, H, approximation):
    return float((((W - approximation) @ H) * (W - approximation)).sum())


def spiky():
    """Low rank, but for a few large weights in every row: what neither part can hold alone."""
    noise, X = layer_data(M, N, 600)
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(a, b, generator=generator, dtype=torch.float64) for a, b in ((M, 4), (4, N)))
    spikes = torch.where(torch.rand(M, N, generator=generator) < 0.05, 8.0, 0.0).double()
    return left @ right + spikes + 0.05 * noise, per_token(X)


def test_together_they_hold_what_neither_holds_alone():
    W, H = spiky()
    A, B, S = low_rank_plus_mask(W, H, 6, 12, 600)
    budget = 6 * (M + N) + 12 * M
    assert A.numel() + B.numel() + int((S != 0).sum()) == budget
    assert ((S != 0).sum(1) == 12).all()
    alone_A, alone_B, _ = output_aligned(W, H, "input", 600)
    rank = budget // (M + N)
    pair = error(W, H, alone_B[:, :rank] @ alone_A[:rank])
    mask = error(W, H, sparsegpt(W, of_channels(H, "sparsegpt", 0.01), inverse_root(H, 0.01), budget // M))
    both = error(W, H, B @ A + S)
    assert both < 0.5 * min(pair, mask)


def test_more_rounds_are_never_worse():
    W, H = spiky()
    errors = []
    for rounds in (1, 2, 4, 8):
        A, B, S = low_rank_plus_mask(W, H, 6, 6, 600, rounds)
        errors.append(error(W, H, B @ A + S))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_without_one_part_it_is_the_other():
    W, H = spiky()
    A, B, S = low_rank_plus_mask(W, H, 5, 0, 600)
    alone_A, alone_B, _ = output_aligned(W, H, "input", 600)
    assert torch.equal(B @ A, alone_B[:, :5] @ alone_A[:5])
    assert not S.any()
    A, B, S = low_rank_plus_mask(W, H, 0, 9, 600)
    assert A.shape == (0, N)
    assert B.shape == (M, 0)
    assert torch.equal(S, sparsegpt(W, of_channels(H, "sparsegpt", 0.01), inverse_root(H, 0.01), 9))


@pytest.mark.parametrize(("rank", "kept"), [(-1, 4), (49, 4), (4, 49), (4, -1)])
def test_impossible_sizes(rank, kept):
    W, H = spiky()
    with pytest.raises(ValueError, match="rank must be in"):
        low_rank_plus_mask(W, H, rank, kept, 600)
