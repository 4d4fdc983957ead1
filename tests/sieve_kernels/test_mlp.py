"""lowrank_mlp: values and gradients against float64 for every mix of layers, and behaviour inside torch."""

from itertools import product

import pytest
import torch
from accuracy import assert_accurate, error
from gradients import check_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import DTYPES
from pairwise import pairwise

from sieve_kernels import lowrank_mlp
from sieve_kernels.core import dispatch
from sieve_kernels.mlp import reference

KINDS = ("dense", "pair", "pivoted")
IMPLEMENTATIONS = ("torch", "torch_gpu", "torch_training", "cpp", "triton_gemv")
NARROW_AND_WIDE = (torch.bfloat16, torch.float32)


def make_layer(kind, n, m, rank, dtype, device):
    def factor(rows, columns):
        return (torch.randn(rows, columns, device=device) * columns**-0.5).to(dtype)

    if kind == "dense":
        return (factor(m, n),)
    if kind == "pair":
        return factor(rank, n), factor(m, rank)
    return factor(rank, n), factor(m - rank, rank), torch.randperm(m, device=device)


def make(rows, n, m, k, kinds, ranks=(5, 7, 4), dtype=torch.float32, device="cpu"):
    """x [*rows, n] and three layers, n → m, n → m, m → k."""
    sizes = ((n, m), (n, m), (m, k))
    layers = [
        make_layer(kind, *size, rank, dtype, device) for kind, size, rank in zip(kinds, sizes, ranks, strict=True)
    ]
    return torch.randn(*rows, n, device=device).to(dtype), layers


def check(x, layers, activation="silu"):
    wide = [tuple(t.double() if t.is_floating_point() else t for t in layer) for layer in layers]
    exact, torchs = reference.mlp(x.double(), wide, activation), reference.mlp(x, layers, activation)
    with torch.no_grad():
        y = mlp(x, layers, activation)
    if x.dtype.itemsize == 2 and y.numel() < 100:  # of so few numbers, torch's own error is small by luck now and then
        assert y.shape == exact.shape
        assert error(y, exact) < 3 * error(torchs, exact) + 5e-3
    else:
        assert_accurate(y, exact, torchs)


def mlp(x, layers, activation="silu"):
    """Of three layers, or of two: gate and up stacked, and down."""
    *inner, down = layers
    return lowrank_mlp(x, *inner, *[None] * (2 - len(inner)), down, activation)


def make_stacked(rows, n, m, k, kinds, ranks=(5, 4), dtype=torch.float32, device="cpu"):
    """x [*rows, n] and two layers, n → 2 m, m → k."""
    sizes = ((n, 2 * m), (m, k))
    layers = [
        make_layer(kind, *size, rank, dtype, device) for kind, size, rank in zip(kinds, sizes, ranks, strict=True)
    ]
    return torch.randn(*rows, n, device=device).to(dtype), layers


@pairwise(
    implementation=IMPLEMENTATIONS,
    first_and_second=list(product(KINDS, repeat=2)),
    dtype=NARROW_AND_WIDE,
    rows=[(1,), (7,), (2, 35)],
)
def test_gate_and_up_stacked(implementation, first, second, dtype, rows, device):
    check(*make_stacked(rows, 50, 70, 45, (first, second), dtype=dtype, device=device))


@pairwise(
    implementation=IMPLEMENTATIONS,
    activation=reference.ACTIVATIONS,
    rows_and_n_and_m_and_k_and_ranks=[
        ((0,), 4, 6, 5, (2, 2)),
        ((40,), 9, 1, 3, (1, 1)),
        ((300,), 96, 200, 80, (48, 33)),
        ((300,), 64, 64, 64, (96, 8)),
    ],
    kind=KINDS,
)
def test_shapes_of_a_stack(implementation, rows, n, m, k, ranks, activation, kind, device):
    check(*make_stacked(rows, n, m, k, (kind, kind), ranks, torch.bfloat16, device), activation)


@pairwise(
    implementation=IMPLEMENTATIONS,
    kinds=["-".join(kinds) for kinds in product(KINDS, repeat=3)],
    rows_and_dtype=[((2,), torch.bfloat16), ((70,), torch.bfloat16), ((1,), torch.float32)],
)
def test_every_mix_of_layers(implementation, kinds, rows, dtype, device):
    check(*make(rows, 50, 70, 45, kinds.split("-"), dtype=dtype, device=device))


@pairwise(
    implementation=IMPLEMENTATIONS,
    dtype=DTYPES,
    activation=reference.ACTIVATIONS,
    rows=[(1,), (2, 3), (40,)],
)
def test_every_dtype_and_activation(implementation, dtype, activation, rows, device):
    check(*make(rows, 40, 64, 48, ("pair", "pivoted", "pair"), dtype=dtype, device=device), activation)


@pairwise(
    implementation=IMPLEMENTATIONS,
    dtype=NARROW_AND_WIDE,
    kind=("pair", "pivoted"),
    rows_and_n_and_m_and_k_and_ranks=[
        ((), 9, 11, 3, (1, 1, 1)),
        ((0,), 4, 6, 5, (2, 2, 2)),
        ((300,), 96, 200, 80, (48, 16, 33)),
        ((8,), 600, 700, 5, (90, 9, 3)),
    ],
)
def test_shapes(implementation, dtype, kind, rows, n, m, k, ranks, device):
    check(*make(rows, n, m, k, (kind,) * 3, ranks, dtype, device))


@given(
    rows=st.integers(1, 40),
    sizes=st.tuples(*[st.integers(4, 80)] * 3),
    kinds=st.tuples(*[st.sampled_from(KINDS)] * 3),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_in_16_bits(rows, sizes, kinds):
    """With room: of a handful of numbers, torch's own error may be small by luck."""
    x, layers = make((rows,), *sizes, kinds, (3, 4, 2), torch.bfloat16)
    wide = [tuple(t.double() if t.is_floating_point() else t for t in layer) for layer in layers]
    exact = reference.mlp(x.double(), wide)
    assert error(mlp(x, layers), exact) < 3 * error(reference.mlp(x, layers), exact) + 2e-2


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    try:
        for rows in ((1,), (5,), (300,)):
            torch.manual_seed(0)
            x, layers = make(rows, 300, 900, 300, ("pair", "pivoted", "pair"), (100, 90, 80), torch.bfloat16)
            torch.set_num_threads(1)
            one = lowrank_mlp(x, *layers)
            torch.set_num_threads(threads)
            assert torch.equal(lowrank_mlp(x, *layers), one)
            x, layers = make_stacked(rows, 300, 900, 300, ("pivoted", "pair"), (100, 80), torch.bfloat16)
            stacked = mlp(x, layers)
            torch.set_num_threads(1)
            assert torch.equal(mlp(x, layers), stacked)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "kinds", [("pair",) * 3, ("dense", "pivoted", "pair"), ("pair", "dense"), ("pivoted", "pair")], ids="-".join
)
def test_gradients(kinds):
    x, layers = (make if len(kinds) == 3 else make_stacked)((6,), 9, 12, 8, kinds)
    counts = [len(layer) for layer in layers]
    tensors = [x, *(t for layer in layers for t in layer if t.is_floating_point())]
    orders = [t for layer in layers for t in layer[2:]]

    def rebuilt(function):
        def call(x, *tensors):
            left, perms = iter(tensors), iter(orders)
            built = [
                (*(next(left) for _ in range(min(count, 2))), *(next(perms) for _ in range(count - 2)))
                for count in counts
            ]
            return function(x, built)

        return call

    check_gradients(rebuilt(mlp), rebuilt(reference.mlp), tensors)


def test_nan_and_infinity_propagate():
    for dtype, rows in ((torch.bfloat16, 20), (torch.float32, 4)):
        x, layers = make((rows,), 24, 32, 16, ("pair",) * 3, dtype=dtype)
        x[1, 2] = torch.nan
        y = lowrank_mlp(x, *layers)
        assert y[1].isnan().all()
        if dtype == torch.float32 or "cpp" in dispatch.explain("lowrank_mlp", x):  # torch's 16-bit products let a
            assert y[[0, 2, 3]].isfinite().all()  # NaN reach the row before where rows have an odd length


def test_explained():
    assert "parts" in dispatch.explain("lowrank_mlp", torch.zeros(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("implementation", ["triton_grouped"], indirect=True)
@pytest.mark.parametrize("kinds", [("pair",) * 3, ("pair", "dense", "pair"), ("pivoted", "pair", "pair")])
@torch.no_grad()
def test_some_rows_by_launches_that_gate_and_up_share(implementation, kinds, device, pretend):
    """Sums split, several tiles each way, edges; and layers that they are not for."""
    if dispatch.INTERPRETED:
        pretend(has_descriptors=True, num_sms=20)
    x, layers = make((70,), 1032, 136, 72, kinds, (72, 40, 48), torch.bfloat16, device)
    y = dispatch.implementation("lowrank_mlp", x, 72)(x, layers, "silu")
    wide = [tuple(t.double() if t.is_floating_point() else t for t in layer) for layer in layers]
    assert_accurate(y, reference.mlp(x.double(), wide, "silu"), reference.mlp(x, layers, "silu"))
