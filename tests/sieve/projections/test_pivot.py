"""Re-basing a pair: the same map, an identity where the permutation says, small entries."""

import pytest
import torch

from sieve.projections import pivot
from sieve_kernels.lowrank import reference


def pair(m: int, n: int, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    B, _ = torch.linalg.qr(torch.randn(m, rank, generator=generator, dtype=torch.float64))
    return torch.randn(rank, n, generator=generator, dtype=torch.float64), B


@pytest.mark.parametrize(("m", "n", "rank"), [(12, 7, 5), (7, 12, 6), (9, 9, 1), (6, 8, 6), (1, 5, 1), (64, 48, 40)])
def test_same_map(m, n, rank):
    A, B = pair(m, n, rank)
    based, C, permutation = pivot(A, B)
    assert (based.shape, C.shape) == ((rank, n), (m - rank, rank))
    assert permutation.dtype == torch.int64
    assert permutation.sort().values.tolist() == list(range(m))
    for part in (permutation[:rank], permutation[rank:]):
        assert part.tolist() == sorted(part.tolist())
    x = torch.randn(4, n, dtype=torch.float64)
    torch.testing.assert_close(reference.pivoted(x, based, C, permutation), x @ A.T @ B.T)
    torch.testing.assert_close(based, (B @ A)[permutation[:rank]])


def test_entries_of_c_stay_small():
    """The rows are picked for it: the leading rows of B would give entries that are hundreds of times larger."""
    picked, leading = [], []
    for seed in range(20):
        A, B = pair(96, 40, 64, seed)
        picked.append(float(pivot(A, B)[1].abs().max()))
        leading.append(float(torch.linalg.solve(B[:64].T, B[64:].T).abs().max()))
    assert max(picked) < 8
    assert sum(leading) > 5 * sum(picked)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_b_without_full_rank(kept):
    """Zero or repeated directions, as of a matrix without output on the data."""
    A, B = pair(10, 8, 5)
    B[:, kept:] = B[:, :1] if kept else 0
    based, C, permutation = pivot(A, B)
    assert C.abs().max() < 10
    x = torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(reference.pivoted(x, based, C, permutation), x @ A.T @ B.T, atol=1e-12, rtol=1e-9)


def test_sixteen_bits_in():
    A, B = (t.bfloat16() for t in pair(12, 9, 5))
    based, C, permutation = pivot(A, B)
    assert based.dtype == C.dtype == torch.float64
    x = torch.randn(4, 9, dtype=torch.float64)
    torch.testing.assert_close(reference.pivoted(x, based, C, permutation), x @ A.double().T @ B.double().T)
