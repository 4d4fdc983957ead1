"""gram_ and cross_gram_: values against float64, whatever the shape, dtype, weights and implementation."""

import numpy as np
import pytest
import torch
from accuracy import assert_accurate
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import DTYPES
from pairwise import pairwise

from sieve_kernels import cross_gram_, gram_
from sieve_kernels.gram import reference, torch_backend
from sieve_kernels.gram import triton_backend as triton_kernels

IMPLEMENTATIONS = ("torch", "cpp", "triton")
every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)


def symmetric(n, dtype=torch.float32, device="cpu"):
    start = torch.randn(n, n, dtype=dtype, device=device)
    return start + start.T


def make_weights(kind, shape, device="cpu"):
    """Weights of a kind, the first token's zero."""
    if kind == "none":
        return None
    made = {
        "mask": lambda: torch.rand(shape, device=device) > 0.4,
        "counts": lambda: torch.randint(0, 3, shape, device=device),
        "fractional": lambda: torch.rand(shape, device=device),
        "negative": lambda: torch.randn(shape, device=device),
        "zero": lambda: torch.zeros(shape, device=device),
    }[kind]()
    made.view(-1)[0] = 0
    return made


def check_gram(x, weight, accumulator=torch.float32):
    start = symmetric(x.shape[-1], accumulator, x.device)
    out = start.clone()
    assert gram_(out, x, weight) is out
    assert_accurate(out, reference.gram(start.double(), x, weight), reference.gram(start, x, weight))
    assert torch.equal(out, out.T)


def check_cross_gram(x, y, weight, accumulator=torch.float32):
    start = torch.randn(x.shape[-1], y.shape[-1], dtype=accumulator, device=x.device)
    out = start.clone()
    assert cross_gram_(out, x, y, weight) is out
    exact, torchs = (reference.cross_gram(s, x, y, weight) for s in (start.double(), start))
    # A few terms can cancel, so that their rounding is large beside the result.
    terms = reference.cross_gram(
        start.double().abs(), x.abs(), y.abs(), None if weight is None else weight.double().abs()
    )
    assert_accurate(out, exact, torchs, terms)


@pairwise(
    implementation=IMPLEMENTATIONS,
    dtype=DTYPES,
    kind=["none", "mask", "fractional"],
)
def test_values_in_every_dtype(implementation, dtype, kind, device):
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = (torch.randn(2, 35, n, device=device).to(dtype) for n in (33, 50))
    weight = make_weights(kind, (2, 35), device)
    check_gram(x, weight, accumulator)
    check_cross_gram(x, y, weight, accumulator)


@every
@pytest.mark.parametrize("kind", ["counts", "negative", "zero"])
def test_other_weights(implementation, kind, device):
    x, y = torch.randn(70, 20, device=device), torch.randn(70, 9, device=device)
    weight = make_weights(kind, (70,), device)
    check_gram(x, weight)
    check_cross_gram(x, y, weight)


@every
@pytest.mark.parametrize(("tokens", "n"), [(0, 5), (1, 1), (3, 0), (1, 130), (64, 128), (65, 200)])
def test_shapes(implementation, tokens, n, device):
    check_gram(torch.randn(tokens, n, device=device), None)
    check_cross_gram(torch.randn(tokens, n, device=device), torch.randn(tokens, 7, device=device), None)


@given(
    tokens=st.integers(0, 40),
    n=st.integers(1, 700),
    m=st.integers(1, 40),
    kind=st.sampled_from(["none", "mask", "counts", "fractional", "negative", "zero"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_on_cpu(tokens, n, m, kind, dtype):
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    weight = make_weights(kind, (tokens,)) if tokens else None
    x, y = torch.randn(tokens, n).to(dtype), torch.randn(tokens, m).to(dtype)
    check_gram(x, weight, accumulator)
    check_cross_gram(x, y, weight, accumulator)


@every
def test_strided_and_batched_inputs(implementation, device):
    transposed = torch.randn(40, 2, 30, device=device).permute(1, 2, 0)  # [2, 30, 40], tokens strided
    check_gram(transposed, make_weights("mask", (2, 30), device))
    check_cross_gram(transposed, transposed[..., ::2], make_weights("fractional", (30, 2), device).T)
    buffer = torch.zeros(2 * 40, 3 * 40, device=device)
    out = buffer[::2, ::3]
    x = torch.randn(10, 40, device=device)
    gram_(out, x)
    assert_accurate(out, reference.gram(torch.zeros(40, 40, device=device).double(), x), x.T @ x)
    assert buffer[1::2].count_nonzero() == 0


@every
def test_wide_accumulator_of_narrow_tokens(implementation, device):
    """A float64 accumulator keeps the products of float32 and 16-bit tokens in full."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(50, 20, device=device).to(dtype)
        out = gram_(torch.zeros(20, 20, dtype=torch.float64, device=device), x)
        torch.testing.assert_close(out, x.double().T @ x.double(), rtol=1e-12, atol=1e-12)


@every
def test_split_over_tokens(implementation, device):
    """Few tiles and many tokens: shares of the tokens go to different programs."""
    tokens = 16 * 32 * 2 + 5
    assert triton_kernels.split(tokens, count=1, block_t=32, num_sms=4)[0] > 1
    check_gram(torch.randn(tokens, 24, device=device), None)
    check_cross_gram(torch.randn(tokens, 24, device=device), torch.randn(tokens, 3, device=device), None)


@pytest.mark.parametrize("tokens", [1, 63, 64, 5000, 1 << 20])
@pytest.mark.parametrize("count", [1, 6, 500])
def test_shares_cover_all_tokens_once(tokens, count):
    shares, share = triton_kernels.split(tokens, count, 64, num_sms=132)
    assert share % 64 == 0
    assert (shares - 1) * share < tokens <= shares * share
    assert shares <= max(1, 132 // count)


@every
def test_masked_tokens_may_hold_nan(implementation, device):
    x, y = torch.randn(12, 8, device=device), torch.randn(12, 5, device=device)
    x[3], y[4] = torch.nan, torch.inf
    for weight in (torch.ones(12, dtype=torch.bool, device=device), torch.full((12,), 0.5, device=device)):
        weight[3:5] = 0
        check_gram(x, weight)
        check_cross_gram(x, y, weight)


@every
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_nan_propagates(implementation, device):
    x = torch.randn(12, 8, device=device)
    x[3, 2], x[4, 5] = torch.nan, torch.inf
    out = gram_(torch.zeros(8, 8, device=device), x)
    torch.testing.assert_close(out, x.T @ x, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert out.isnan().any()


@every
def test_only_the_upper_triangle_is_read(implementation, device):
    start = symmetric(150, device=device)
    x = torch.randn(9, 150, device=device)
    lower = torch.ones_like(start).tril(-1).bool()
    out = gram_(start.masked_fill(lower, torch.nan), x)
    assert_accurate(out, reference.gram(start.double(), x), reference.gram(start, x))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_input_same_bits(implementation, dtype, device):
    x = torch.randn(1100, 40, device=device).to(dtype)
    first, second = (gram_(torch.zeros(40, 40, device=device), x) for _ in range(2))
    assert torch.equal(first, second)


@every
def test_offsets_beyond_32_bits(implementation):
    """A token 2³¹ numbers away from the first. The memory is never touched, so it costs nothing."""
    far = torch.from_numpy(np.zeros((1 << 31) + 64, dtype=np.int16)).view(torch.float16)
    x = far.as_strided((3, 16), (1 << 30, 1))
    x.copy_(torch.randn(3, 16))
    check_gram(x, None)


def test_row_blocks_join(monkeypatch):
    """Converted inputs go through in row blocks; so do weighted ones."""
    monkeypatch.setattr(torch_backend, "BLOCK", 100)
    x = torch.randn(57, 12)
    check_gram(x.bfloat16(), None)
    check_gram(x, make_weights("fractional", (57,)))
    check_cross_gram(x, torch.randn(57, 30), make_weights("mask", (57,)))


@pytest.mark.parametrize("weight", [None, torch.rand(30) > 0.5])
def test_opcheck(weight):
    x, y = torch.randn(30, 12), torch.randn(30, 5)
    torch.library.opcheck(torch.ops.sieve_kernels.gram_, (torch.zeros(12, 12), x, weight))
    torch.library.opcheck(torch.ops.sieve_kernels.cross_gram_, (torch.zeros(12, 5), x, y, weight))


def test_compiles_without_graph_breaks():
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(out, x, weight):
        return gram_(out, x * 2, weight) + 1

    for tokens in (7, 9):
        x, weight, out = torch.randn(tokens, 6), torch.rand(tokens), torch.zeros(6, 6)
        result = step(out, x, weight)
        torch.testing.assert_close(out, reference.gram(torch.zeros(6, 6), 2 * x, weight))
        torch.testing.assert_close(result, out + 1)


def test_inputs_that_require_grad_and_autocast():
    x = torch.randn(20, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gram_(torch.zeros(6, 6), x)
    assert not out.requires_grad
    torch.testing.assert_close(out, (x.T @ x).detach(), rtol=1e-5, atol=1e-5)


@every
def test_version_counter_is_bumped(implementation, device):
    """Autograd must notice when something it saved is overwritten."""
    out = torch.zeros(4, 4, device=device)
    before = out._version
    gram_(out, torch.ones(3, 4, device=device))
    cross_gram_(out, torch.ones(3, 4, device=device), torch.ones(3, 4, device=device))
    assert out._version >= before + 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n", [31, 385, 800])
@every
def test_more_than_one_square_and_one_sum(implementation, n, dtype):
    """More channels than a compiled kernel sums at a time, and more tokens than it sums before adding."""
    if implementation == "triton":
        pytest.skip("the interpreter is slow, and tiles are small there")
    check_gram(torch.randn(4200, n).to(dtype), None)
    check_cross_gram(torch.randn(300, n).to(dtype), torch.randn(300, 70).to(dtype), None)


@every
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_infinity_beside_finite_tokens(implementation, device):
    """An infinite float32 number has no exact terms; its products are what torch says all the same."""
    x = torch.randn(300, 40, device=device)
    x[7, 3], x[290, 39] = torch.inf, -torch.inf
    out = gram_(torch.zeros(40, 40, device=device), x)
    torch.testing.assert_close(out, x.T @ x, equal_nan=True, rtol=1e-4, atol=1e-3)
