"""Gram matrices of tiles that the GPU copies by itself: values for every shape and tiling, and who goes this way."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accuracy import assert_accurate

from sieve_kernels import cross_gram_, gram_
from sieve_kernels.autotune.config import GemmConfig
from sieve_kernels.core.device import has_tma, num_sms
from sieve_kernels.core.plans import Plans
from sieve_kernels.gram import reference, tiling, triton_tma
from sieve_kernels.gram.tiling import choose_tiling, num_programs

pytestmark = [
    pytest.mark.parametrize("implementation", ["triton"], indirect=True),
    pytest.mark.usefixtures("implementation"),
]

SMALL = [
    GemmConfig(16, 16, 16, num_stages=2, group_m=2),
    GemmConfig(16, 32, 16, num_stages=2, group_m=3),
    GemmConfig(16, 16, 16, split_k=3, num_stages=2, group_m=2),
    GemmConfig(16, 32, 16, split_k=2, num_stages=2, group_m=2),
]
"""Tilings that cut small matrices into many tiles."""


@pytest.fixture(autouse=True)
def calls(monkeypatch, device, pretend):
    """Pretend to be a GPU that copies tiles by TMA where there is none, and note which calls make use of it."""
    taken = []
    if device.type == "cpu":
        pretend(has_descriptors=True)
    elif not has_tma(device):
        pytest.skip("this GPU does not copy tiles by itself")
    original = triton_tma.prepare

    def noted(*arguments):
        run = original(*arguments)
        return lambda *arguments: taken.append(arguments) or run(*arguments)

    monkeypatch.setattr(triton_tma, "prepare", noted)
    # Plans are of the kind of arguments, not of what this test has changed.
    monkeypatch.setattr(Plans, "_remember", lambda plans, kind, run: run)
    return taken


def random_symmetric(n, device):
    start = torch.randn(n, n, device=device)
    return start + start.T


def check(x, y, mask=None):
    """`gram_` of x, whose accumulator holds NaN below the diagonal, and `cross_gram_` of x and y."""
    n, device = x.shape[1], x.device
    start = random_symmetric(n, device)
    out = start.masked_fill(torch.ones(n, n, dtype=torch.bool, device=device).tril(-1), torch.nan)
    gram_(out, x, mask)
    assert_accurate(out, reference.gram(start.double(), x, mask), reference.gram(start, x, mask))
    assert torch.equal(out, out.T)
    start = torch.randn(n, y.shape[1], device=device)
    out = cross_gram_(start.clone(), x, y, mask)
    exact, torchs = (reference.cross_gram(s, x, y, mask) for s in (start.double(), start))
    assert_accurate(out, exact, torchs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("tokens", "n", "m"), [(70, 136, 64), (1, 64, 264), (130, 392, 72)])
def test_values(calls, dtype, masked, tokens, n, m, device):
    """Sides that are no multiples of a tile, and fewer tokens than a step."""
    x, y = (torch.randn(tokens, width, device=device).to(dtype) for width in (n, m))
    mask = torch.rand(tokens, device=device) > 0.4 if masked else None
    if masked and tokens > 1:
        mask[3], x[3], y[3] = False, torch.nan, torch.inf
    check(x, y, mask)
    assert len(calls) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="tiles too small for a GPU's tensor cores")
@pytest.mark.parametrize(
    ("small", "dtype", "tokens", "n", "m"),
    [
        *((small, torch.bfloat16, 33, 64, 64) for small in SMALL),
        *((small, torch.bfloat16, 20, 72, 104) for small in SMALL),
        *((small, torch.bfloat16, 70, 40, 88) for small in SMALL),
        *((small, torch.float32, 33, 64, 72) for small in SMALL),
        # Many tiles each way.
        (SMALL[0], torch.bfloat16, 20, 200, 104),
        (SMALL[-1], torch.bfloat16, 16, 264, 128),
    ],
    ids=str,
)
def test_every_tile_once(monkeypatch, small, dtype, tokens, n, m):
    if dtype == torch.float32:
        small = replace(small, block_n=small.block_m)
    monkeypatch.setattr(triton_tma, "GRAM_TMA", SimpleNamespace(choose=lambda shape: small))
    monkeypatch.setattr(triton_tma, "BLOCK_T", small.block_k)
    check(torch.randn(tokens, n).to(dtype), torch.randn(tokens, m).to(dtype))


def test_split_over_tokens(device):
    """Few tiles and many tokens: the shares are summed in order, so the same input gives the same bits."""
    tokens = 2 * 256 + 24
    assert choose_tiling(tokens, 64, 64, True, 1, num_sms(device)).split_k > 1
    x, y = (torch.randn(tokens, n, device=device).bfloat16() for n in (64, 72))
    check(x, y)
    first, second = (gram_(torch.zeros(64, 64, device=device), x) for _ in range(2))
    assert torch.equal(first, second)


def test_row_of_a_wider_matrix_and_of_a_wider_accumulator(calls, device):
    wide, buffer = torch.randn(40, 256, device=device).bfloat16(), torch.zeros(100, 104, device=device)
    x, out = wide[:, 64:136], buffer[:72, 8:80]
    gram_(out, x)
    assert_accurate(out, reference.gram(torch.zeros(72, 72, device=device).double(), x), x.T.float() @ x.float())
    assert buffer.count_nonzero() == out.count_nonzero()
    assert len(calls) == 1


def test_odd_sides_in_an_aligned_accumulator(calls, device):
    """Neither the tokens' rows nor those of the workspace for shares are aligned by themselves."""
    tokens = 2 * 256 + 24
    assert choose_tiling(tokens, 69, 69, True, 1, num_sms(device)).split_k > 1
    x, out = torch.randn(tokens, 69, device=device).bfloat16(), torch.zeros(69, 72, device=device)[:, :69]
    gram_(out, x)
    assert_accurate(out, reference.gram(torch.zeros(69, 69, device=device).double(), x), x.T.float() @ x.float())
    assert torch.equal(out, out.T)
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nan_and_infinity_propagate(dtype, device):
    x = torch.randn(40, 64, device=device).to(dtype)
    x[3, 2], x[4, 5] = torch.nan, torch.inf
    x[4, 6] = 1  # exactly one term
    out = gram_(torch.zeros(64, 64, device=device), x)
    torch.testing.assert_close(out, x.float().T @ x.float(), equal_nan=True, rtol=1e-3, atol=1e-3)


def test_rows_that_tma_cannot_read_are_copied(calls, monkeypatch, device):
    """Those that are not aligned to 16 bytes and strided ones; a few thousand at a time."""
    monkeypatch.setattr(triton_tma, "MOST_COPIED", 0)
    out = torch.zeros(72, 72, device=device)
    for x in (
        torch.randn(20, 80, device=device).bfloat16()[:, 1:73],
        torch.randn(72, 24, device=device).bfloat16().T[:20],
        torch.randn(4096 + 20, 72, device=device),
    ):
        start = out.clone()
        gram_(out, x)
        assert_accurate(out, reference.gram(start.double(), x), reference.gram(start, x))
    assert len(calls) == 3


def test_what_goes_the_other_way(calls, device):
    """An accumulator that is not aligned or in float64, weights that are no mask, and few channels."""
    x = torch.randn(20, 72, device=device).bfloat16()
    for tokens, out, weight in (
        (x.double(), torch.zeros(72, 72, dtype=torch.float64, device=device), None),
        (x, torch.zeros(72, 72, dtype=torch.float64, device=device), None),
        (x, torch.zeros(72, 72, device=device), torch.rand(20, device=device)),
        (torch.randn(20, 73, device=device).bfloat16(), torch.zeros(73, 73, device=device), None),
        (x, torch.zeros(72, 74, device=device)[:, :72], None),
        (x, torch.zeros(73, 72, device=device).flatten()[1 : 1 + 72 * 72].view(72, 72), None),
        (x[:, :56], torch.zeros(56, 56, device=device), None),
    ):
        start = out.clone()
        gram_(out, tokens, weight)
        assert_accurate(out, reference.gram(start.double(), tokens, weight), reference.gram(start, tokens, weight))
    assert calls == []


@pytest.mark.parametrize("num_sms", [16, 114, 132, 148])
@pytest.mark.parametrize("n", [64, 576, 1536, 4096, 8192, 14336])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("terms", [1, 3])
def test_tilings(num_sms, n, symmetric, terms):
    """All tiles are counted, and the workspace of a split stays within its limit."""
    for tokens in (1, 100, 8192):
        chosen = choose_tiling(tokens, n, n, symmetric, terms, num_sms)
        side, halves = -(-n // chosen.block_n), chosen.block_n // chosen.block_m
        if symmetric:
            count = side * (side - 1) // 2 * halves + side * halves * (halves + 1) // 2
        else:
            count = -(-n // chosen.block_m) * side
        assert num_programs(chosen, n, n, symmetric) == count
        assert chosen.split_k == 1 or 4 * n * n * chosen.split_k <= tiling.MAX_WORKSPACE


@pytest.mark.parametrize(
    ("tokens", "n", "terms", "block_n", "num_stages", "split_k"),
    [
        (8192, 576, 1, 128, 4, 8),
        (8192, 1536, 1, 128, 3, 3),
        (8192, 4096, 1, 256, 4, 1),
        (16384, 8192, 1, 256, 4, 1),
        (8192, 4096, 3, 128, 4, 1),
    ],
)
def test_tilings_that_an_h100_found_fastest(tokens, n, terms, block_n, num_stages, split_k):
    chosen = choose_tiling(tokens, n, n, True, terms, 132)
    assert (chosen.block_n, chosen.num_stages, chosen.split_k) == (block_n, num_stages, split_k)
