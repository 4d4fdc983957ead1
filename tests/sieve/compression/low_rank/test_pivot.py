"""Re-basing a pair: the same map, an identity where the permutation says, small entries."""

import pytest
import torch

from sieve.compression.low_rank.output_aligned import output_aligned
from sieve.compression.low_rank.pair import FactorPair
from sieve.nn.pivot import pivot, rounded_pivot
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


def fitted(dtype: torch.dtype, side: str = "input") -> tuple[torch.Tensor, FactorPair]:
    """Inputs X [n, tokens] with much in common, as activations have it, and the factors of a matrix for them."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(48, 600, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, 48)[:, None]
    X += 3 * torch.randn(48, 1, generator=generator, dtype=torch.float64)
    W = torch.randn(96, 48, generator=generator, dtype=torch.float64)
    A, B, energy = output_aligned(W, X @ X.T, "input", 600)
    return X, FactorPair(A.to(dtype), B.to(dtype), energy, (X @ X.T).float() if side == "input" else None)


def pivoted(pair: FactorPair, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As a plan that gives the matrix this rank stores it."""
    return rounded_pivot(*pair.slice(rank), pair.A.dtype, pair.gram, pair.energy)


def error(pair: FactorPair, X: torch.Tensor, based: torch.Tensor, C: torch.Tensor, permutation: torch.Tensor) -> float:
    y = X.T @ pair.A[: len(based)].double().T @ pair.B[:, : len(based)].double().T
    return float((reference.pivoted(X.T, based.double(), C.double(), permutation) - y).norm() / y.norm())


@pytest.mark.parametrize(("side", "gain"), [("input", 2), ("output", 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_errors_are_made_good(dtype, side, gain):
    """Far less output error than rounding A' and C alone; all that inputs tell is used where they were watched."""
    X, pair = fitted(dtype, side)
    for rank in (12, 30, 44):
        exact = pivot(*pair.slice(rank))
        ours = pivoted(pair, rank)
        assert ours[0].dtype == ours[1].dtype == dtype
        assert torch.equal(ours[2], exact[2])
        naive = error(pair, X, exact[0].to(dtype), exact[1].to(dtype), exact[2])
        assert error(pair, X, *ours) < naive / gain


def test_wide_dtypes_are_the_map_itself():
    X, pair = fitted(torch.float32)
    based, C, permutation = pivoted(pair, 20)
    assert based.dtype == C.dtype == torch.float32
    assert error(pair, X, based, C, permutation) < 1e-6


def test_without_data_only_rounding_remains():
    _, pair = fitted(torch.bfloat16)
    silent = FactorPair(pair.A, pair.B, torch.zeros_like(pair.energy), pair.gram * 0)
    exact, ours = pivot(*silent.slice(20)), pivoted(silent, 20)
    assert torch.equal(ours[1], exact[1].bfloat16())
