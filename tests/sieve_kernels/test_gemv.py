"""The GPU's kernels for few rows: every operator at sizes that they serve, against float64 and torch's own error."""

import pytest
import torch
from accuracy import assert_accurate
from pairwise import pairwise
from torch.utils._python_dispatch import TorchDispatchMode

from sieve_kernels import (
    linear,
    lowrank_linear,
    lowrank_linear_group,
    lowrank_linear_pivoted,
    lowrank_linear_quantized,
    lowrank_mlp,
    lowrank_swiglu,
    quantize_rows,
)
from sieve_kernels.core.plans import Direct, Plans, kind_of
from sieve_kernels.lowrank import reference
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.lowrank.quantize import dequantize_rows
from sieve_kernels.mlp import reference as gated

pytest.importorskip("triton")
from sieve_kernels.lowrank.triton import gemv

ours = pytest.mark.parametrize("implementation", ["triton_gemv"], indirect=True)
ROWS = (1, 5)
SIZES = ((72, 16, 96), (1040, 264, 40), (24, 8, 8))
"""Multiples of 8 all: rows of 16 bits are aligned to 16 bytes."""


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fails a test in which no kernel was launched: what these kernels cannot take goes to the library."""
    launched = []
    launch = gemv.Launch.__call__
    monkeypatch.setattr(gemv.Launch, "__call__", lambda self, *t: (launched.append(1), launch(self, *t))[1])
    return launched


@pytest.fixture
def make(device):
    def factory(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
        return (torch.randn(shape, device=device) * shape[-1] ** -0.5).to(dtype)

    return factory


def double(tensors):
    return [t.double() if t is not None and t.is_floating_point() else t for t in tensors]


def compare(operator, definition, tensors, served):
    """The operator's value beside the definition's in float64 and in the tensors' own dtype."""
    with torch.no_grad():
        exact, torchs, result = definition(*double(tensors)), definition(*tensors), operator(*tensors)
    assert served, "no kernel for few rows was launched"
    for one, e, t in zip(
        *(list(y) if isinstance(y, (list, tuple)) else [y] for y in (result, exact, torchs)), strict=True
    ):
        assert_accurate(one, e, t)


@ours
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("T", [1, 2, 16, 17, 32])
def test_numbers_of_rows_and_dtypes(implementation, make, served, dtype, T):
    x, A, B = (make(*shape, dtype=dtype) for shape in ((T, 72), (24, 72), (40, 24)))
    compare(lowrank_linear, reference.linear, (x, A, B, None), served)


@pairwise(implementation=["triton_gemv"], T=ROWS, n_and_r_and_m=SIZES, biased=[True, False])
def test_pairs(implementation, make, served, T, n, r, m, biased):
    x, A, B, bias = (make(*shape) for shape in ((T, n), (r, n), (m, r), (m,)))
    compare(lowrank_linear, reference.linear, (x, A, B, bias if biased else None), served)


@pairwise(implementation=["triton_gemv"], T=ROWS, n_and_r_and_m=SIZES, biased=[True, False])
def test_pivoted_pairs(implementation, make, served, T, n, r, m, biased, device):
    x, A, C, bias = (make(*shape) for shape in ((T, n), (r, n), (m, r), (m + r,)))
    permutation = torch.randperm(m + r, device=device)
    compare(lowrank_linear_pivoted, reference.pivoted, (x, A, C, permutation, bias if biased else None), served)


@pairwise(implementation=["triton_gemv"], T=ROWS, pivoted=[True, False], biased=[True, False], count=[2, 3])
def test_groups(implementation, make, served, T, pivoted, biased, count, device):
    n, layers = 72, [(40, 96), (16, 32), (8, 136)][:count]
    x, As = make(T, n), [make(r, n) for r, _ in layers]
    Bs, biases = [make(m - r * pivoted, r) for r, m in layers], [make(m) for _, m in layers] if biased else None
    permutations = [torch.randperm(m, device=device) for _, m in layers] if pivoted else None

    def separate(x, *rest):
        A, B = rest[:count], rest[count : 2 * count]
        b = rest[2 * count :] or [None] * count
        if not pivoted:
            return [reference.linear(x, *of) for of in zip(A, B, b, strict=True)]
        return [reference.pivoted(x, *of) for of in zip(A, B, permutations, b, strict=True)]

    def together(x, *rest):
        A, B, b = rest[:count], rest[count : 2 * count], rest[2 * count :]
        return lowrank_linear_group(x, A, B, list(b) or None, permutations)

    compare(together, separate, (x, *As, *Bs, *(biases or ())), served if not pivoted or device.type == "cuda" else [1])


@pairwise(implementation=["triton_gemv"], T=ROWS, biased=[True, False])
def test_dense_layers(implementation, make, served, T, biased):
    x, W, bias = make(T, 1040), make(136, 1040), make(136)
    compare(linear, reference.dense, (x, W, bias if biased else None), served)


@pairwise(
    implementation=["triton_gemv"],
    T_and_bits=[(1, 8), (5, 8), (16, 8), (1, 4)],
    n_and_r_and_m=[(64, 32, 96), (2240, 288, 24)],
    biased=[True, False],
)
def test_integers(implementation, make, served, T, bits, n, r, m, biased):
    x, bias = make(T, n), make(m) if biased else None
    A, B = quantize_rows(make(r, n), bits), quantize_rows(make(m, r), bits)

    def definition(x, bias):
        A_, B_ = dequantize_rows(*A, n, torch.float64), dequantize_rows(*B, r, torch.float64)
        return reference.linear(x, A_.to(x.dtype), B_.to(x.dtype), bias)

    compare(lambda x, bias: lowrank_linear_quantized(x, *A, *B, bias), definition, (x, bias), served)


@pairwise(implementation=["triton_gemv"], T=ROWS, activation=gated.ACTIVATIONS)
def test_gated_layers(implementation, make, served, T, activation):
    tensors = [make(*shape) for shape in ((T, 200), (40, 200), (136, 40), (24, 200), (136, 24))]
    compare(lambda *t: lowrank_swiglu(*t, activation), lambda *t: gated.swiglu(*t, activation), tensors, served)


def layer(make, device, kind, n, m, r):
    if kind == "dense":
        return (make(m, n),)
    if kind == "pair":
        return make(r, n), make(m, r)
    return make(r, n), make(m - r, r), torch.randperm(m, device=device)


@ours
@pytest.mark.parametrize("T", [1, 3, 16])
@pytest.mark.parametrize(
    "kinds",
    [
        "pair pair pair",
        "pivoted pivoted pivoted",
        "dense pivoted dense",
        "dense dense pair",
        "pair pair",
        "pivoted dense",
        "dense pivoted",
    ],
)
def test_whole_mlps(implementation, make, served, device, T, kinds):
    """Gate, up and down, or gate and up stacked and down."""
    *inner, down = kinds.split()
    x, m = make(T, 72), 80
    inner = [layer(make, device, kind, 72, m * (3 - len(inner)), 24) for kind in inner]
    layers = [*inner, layer(make, device, down, m, 40, 16)]

    def flat(function):
        def of(x, *tensors):
            left = iter(tensors)
            return function(x, [tuple(next(left) for _ in one) for one in layers], "silu")

        return of

    def operator(x, layers, activation):
        *inner, down = layers
        return lowrank_mlp(x, *inner, *[None] * (2 - len(inner)), down, activation)

    compare(flat(operator), flat(gated.mlp), (x, *(t for one in layers for t in one)), served)


@ours
def test_rows_with_gaps_and_leading_dimensions(implementation, make, served):
    A, B = make(16, 64), make(96, 16)
    for x in (
        make(2, 3, 64),
        make(4, 128)[:, :64],
        make(3, 2, 64).transpose(0, 1),
        make(64),
        make(1, 1, 64).expand(4, 1, 64),
    ):
        compare(lowrank_linear, reference.linear, (x, A, B, None), served)


@ours
def test_what_is_not_aligned_goes_to_the_library(implementation, make, served):
    for n, r, m in ((63, 16, 8), (64, 15, 8)):
        with torch.no_grad():
            lowrank_linear(make(2, n), make(r, n), make(m, r))
    assert not served


def test_more_rows_are_served_where_the_weights_are_small(make):
    small, large = make(64, 64), torch.empty(gemv.SMALL_BYTES // 128 + 1, 64, dtype=torch.bfloat16)
    assert gemv.serves(make(32, 64), small)
    assert not gemv.serves(make(33, 64), small)
    assert gemv.serves(make(gemv.ANY_SIZE, 64), large)
    assert not gemv.serves(make(32, 64), large)


def test_a_plan_is_made_once_for_each_kind():
    made = []
    plans = Plans(lambda *arguments: made.append(1) or (lambda *arguments: len(made)))
    x = torch.zeros(4, 8)
    for argument in (x, torch.ones(4, 8), x.double(), x.T, x[1:], torch.nn.Parameter(x), [x], [x, None], [x]):
        plans(argument)
    assert len(made) == 6  # the second, the parameter and the last list are as one before; x[1:] has other rows


def test_what_autograd_or_a_subclass_must_know_of_is_not_direct():
    class Own(torch.Tensor):
        pass

    x, W = torch.zeros(2, 8), torch.nn.Parameter(torch.zeros(3, 8))
    assert kind_of((x, [W, None], "silu"), differentiable=False) is not None
    assert kind_of((x, [W]), differentiable=True) is None
    assert kind_of((x.as_subclass(Own),)) is None
    direct = Direct(lambda *arguments: lambda *arguments: "called")
    assert direct(x) == "called"
    with torch.enable_grad():
        assert direct(W) is None
    with torch.no_grad():
        assert direct(W) == "called"
    with TorchDispatchMode():
        assert direct(x) is None


def test_the_inverse_of_a_permutation_follows_it(device):
    permutation = torch.randperm(50, device=device)
    index = inverse(permutation)
    assert torch.equal(permutation[index], torch.arange(50, device=device))
    assert inverse(permutation) is index
    permutation.copy_(permutation.flip(0))
    assert torch.equal(permutation[inverse(permutation)], torch.arange(50, device=device))
