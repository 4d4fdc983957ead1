"""The product under every operator: sums split, several products side by side, tiles copied by TMA."""

import pytest
import torch
from accuracy import assert_accurate

from sieve_kernels import lowrank_linear
from sieve_kernels.autotune.config import SPLITTABLE, GemmConfig, GemmShape, recorded
from sieve_kernels.common import gemm as module
from sieve_kernels.common.gemm import grouped_gemm, matmul, split_k_factor, split_k_reduce, summed_matmul
from sieve_kernels.core import dispatch
from sieve_kernels.lowrank import reference

pytestmark = pytest.mark.skipif(not dispatch.INTERPRETED, reason="calls kernels with tensors on CPU")
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])


def operands(M, N, K, dtype=torch.float32):
    return torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)


def check(ours, a, b, bias=None):
    exact, torchs = (f(a) @ f(b).T + (0 if bias is None else f(bias)) for f in (torch.Tensor.double, torch.clone))
    assert_accurate(ours, exact, torchs)


@dtypes
def test_parts_of_split_sums_add_up(dtype):
    a, b = operands(3, 70, 300, dtype)
    bias = torch.randn(70).to(dtype)
    for split_k in (2, 4, 8):
        (parts,) = grouped_gemm([a], [b], config=GemmConfig(16, 32, 16, split_k))
        assert parts.shape == (split_k, 3, 70)
        check(split_k_reduce(parts, bias, dtype), a, b, bias)


@dtypes
def test_parts_are_added_by_the_next_product(dtype):
    x, A = operands(5, 40, 300, dtype)
    B = torch.randn(33, 40).to(dtype)
    (y,) = grouped_gemm(grouped_gemm([x], [A], config=GemmConfig(16, 64, 32, 4)), [B])
    exact, torchs = ((f(x) @ f(A).T) @ f(B).T for f in (torch.Tensor.double, torch.clone))
    assert_accurate(y, exact, torchs)


def test_split_k_factor(pretend):
    pretend(num_sms=132)
    count = {
        (M, N, K): split_k_factor(GemmShape(M, (N,), (K,), torch.bfloat16, torch.device("cpu")))
        for M, N, K in ((1, 1024, 4096), (1, 4096, 4096), (64, 64, 4096), (1, 64, 128), (65, 64, 4096), (0, 64, 4096))
    }
    assert list(count.values()) == [4, 2, 4, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_rows_take_shares(dtype, monkeypatch, pretend):
    """The operator splits on a GPU with processors to spare, gives the same bits each time, and lets NaN through."""
    monkeypatch.setenv("SIEVE_KERNELS", "triton")
    pretend(num_sms=132)
    (x, A), bias = operands(2, 20, 600, dtype), torch.randn(9).to(dtype)
    B = torch.randn(9, 20).to(dtype)
    with recorded() as launches:
        y = lowrank_linear(x, A, B, bias)
    assert [launch.config.split_k for launch in launches] == [2 if dtype == torch.bfloat16 else 4, 1]
    assert [SPLITTABLE in launch.shape.traits for launch in launches] == [True, False]
    exact, torchs = (reference.linear(*(f(t) for t in (x, A, B, bias))) for f in (torch.Tensor.double, torch.clone))
    assert_accurate(y, exact, torchs)
    assert torch.equal(y, lowrank_linear(x, A, B, bias))
    x[1, 599] = torch.nan
    y = lowrank_linear(x, A, B, bias)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


@dtypes
def test_several_products_in_one_launch(dtype):
    """Common rows; different widths and depths, each with its own strides."""
    sizes = ((70, 33), (5, 130), (129, 64))
    a, b = zip(*(operands(9 * 64 + 3, N, K, dtype) for N, K in sizes), strict=True)
    b = [b[0], b[1].T.contiguous().T, b[2]]
    bias = [torch.randn(2 * N).to(dtype)[::2] for N, _ in sizes]
    for ours, *products in zip(grouped_gemm(a, b, bias), a, b, bias, strict=True):
        check(ours, *products)


def test_sum_of_products():
    sizes = (33, 130, 64)
    a, b = zip(*(operands(70, 90, K) for K in sizes), strict=True)
    exact, torchs = (sum(f(p) @ f(q).T for p, q in zip(a, b, strict=True)) for f in (torch.Tensor.double, torch.clone))
    assert_accurate(summed_matmul(a, b), exact, torchs)


@pytest.fixture
def launches(monkeypatch, pretend):
    """Pretend to be a GPU that copies tiles by TMA, and note which launches make use of it."""
    taken = []
    pretend(has_descriptors=True)
    original = module.TensorDescriptor.from_tensor
    monkeypatch.setattr(
        module.TensorDescriptor, "from_tensor", lambda t, block: taken.append(tuple(block)) or original(t, block)
    )
    return taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("M", "N", "K"), [(128, 128, 64), (130, 72, 200), (65, 1, 8)])
def test_tiles_copied_by_tma(launches, dtype, M, N, K):
    """Also where the sides are no multiples of a tile: what is outside arrives as zero."""
    a, b = operands(M, N, K, dtype)
    bias = torch.randn(N).to(dtype)
    check(matmul(a, b, bias), a, b, bias)
    assert len(launches) == 2
    check(matmul(a[:, :0], b[:, :0], bias), a[:, :0], b[:, :0], bias)


def test_what_tma_cannot_read(launches):
    """Rows that are not aligned to 16 bytes, strided ones, 32-bit numbers and few rows go the other way."""
    a, b = operands(128, 64, 64, torch.bfloat16)
    is_vectorizable = torch.randn(128, 65).bfloat16()
    for x, w in (
        (a.float(), b.float()),
        (is_vectorizable[:, 1:], b),
        (is_vectorizable.T[1:].contiguous().T, b),
        (a[:16], b),
        (a, b.T.contiguous().T),
    ):
        check(matmul(x, w), x, w)
    assert launches == []
