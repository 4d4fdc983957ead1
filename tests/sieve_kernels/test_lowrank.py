"""lowrank_linear: values and gradients against float64, and slices.

`test_operators` has what holds for all operators.
"""

import pytest
import torch
from accuracy import assert_accurate
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import DTYPES, OPERATORS, pair_tensors, two_products
from pairwise import pairwise

from sieve_kernels import lowrank_linear
from sieve_kernels.core import dispatch
from sieve_kernels.lowrank import reference

every = pytest.mark.parametrize(
    "implementation", ["torch", "torch_training", "cpp", "triton", "triton_fused", "triton_gemv"], indirect=True
)


make, check = pair_tensors, OPERATORS["lowrank_linear"].check


@pairwise(
    implementation=OPERATORS["lowrank_linear"].implementations,
    dtype=DTYPES,
    biased=[True, False],
)
def test_values_and_gradients_in_every_dtype(implementation, dtype, biased, device):
    x, A, B, bias = make((2, 17), 50, 70, 20, dtype, device)
    check(x, A, B, bias if biased else None)


@every
@pytest.mark.parametrize(
    ("rows", "n", "m", "rank"),
    [((1,), 1, 1, 1), ((3,), 130, 67, 1), ((65,), 64, 64, 64), ((), 33, 5, 3), ((2, 1, 3), 16, 129, 17)],
)
def test_shapes(implementation, rows, n, m, rank, device):
    check(*make(rows, n, m, rank, device=device))


@every
def test_more_tiles_than_a_group(implementation, device):
    """Tiles are taken in groups of eight rows of tiles; the last group is smaller."""
    check(*make((9 * 64 + 1,), 5, 70, 3, device=device))


@pytest.mark.parametrize("implementation", ["triton_grouped"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "n", "m", "rank"), [((64,), 2120, 136, 72), ((3, 11), 2048, 40, 8), ((50,), 80, 9, 3)]
)
@torch.no_grad()
def test_half_a_tile_of_rows(implementation, dtype, rows, n, m, rank, device, pretend):
    """Sums split, edges; and a pair that tiles cannot be copied of."""
    if dispatch.INTERPRETED:
        pretend(has_descriptors=True)
    x, A, B, bias = make(rows, n, m, rank, dtype, device)
    for b in (None, bias):
        y = dispatch.implementation("lowrank_linear", x, rank)(x, A, B, b)
        exact = reference.linear(x.double(), A.double(), B.double(), None if b is None else b.double())
        assert_accurate(y, exact, two_products(x, A, B, b))


@given(
    rows=st.lists(st.integers(1, 5), max_size=3),
    n=st.integers(1, 60),
    m=st.integers(1, 60),
    rank=st.integers(1, 20),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_on_cpu(rows, n, m, rank):
    """In float64, where the rule leaves room for the luck that one or two rounded numbers have."""
    check(*make(rows, n, m, rank, torch.float64))


@every
def test_no_rows(implementation, device):
    x, A, B, bias = (t.requires_grad_() for t in make((2, 0), 8, 6, 3, device=device))
    y = lowrank_linear(x, A, B, bias)
    assert y.shape == (2, 0, 6)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(t.grad.count_nonzero() == 0 for t in (A, B, bias))


@every
@pytest.mark.parametrize("rank", [1, 7, 16])
def test_rank_is_a_slice(implementation, rank, device):
    """The leading slice of nested factors gives what copies of the slice give; beyond it gradients are zero."""
    tensors = make((5,), 20, 12, 16, device=device)
    x, A, B, bias = (t.requires_grad_() for t in tensors)
    y = lowrank_linear(x, A, B, bias, rank=rank)
    torch.testing.assert_close(y, lowrank_linear(x, A[:rank].clone(), B[:, :rank].clone(), bias))
    upstream = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, A, B, bias), upstream)
    torchs = torch.autograd.grad(two_products(x, A[:rank], B[:, :rank], bias), (x, A, B, bias), upstream)
    for mine, theirs in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert ours[1][rank:].count_nonzero() == 0
    assert ours[2][:, rank:].count_nonzero() == 0


def test_gradients_of_slices_twice():
    tensors = [t.double().requires_grad_() for t in make((2, 3), 5, 4, 3)]
    assert torch.autograd.gradcheck(lambda *t: lowrank_linear(*t, rank=2), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: lowrank_linear(*t, rank=2), tensors)


def test_one_graph_for_every_rank():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def layer(x, A, B, bias, rank):
        return lowrank_linear(x.relu(), A, B, bias, rank=rank).square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)
    trained = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows, rank in ((4, 3), (5, 4), (7, 2)):
        tensors = [t.requires_grad_() for t in make((rows,), 10, 6, 5)]
        expected = layer(*tensors, rank)
        torch.testing.assert_close(compiled(*tensors, rank), expected)
        wanted = torch.autograd.grad(expected, tensors)
        for ours, theirs in zip(torch.autograd.grad(trained(*tensors, rank), tensors), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert len(graphs) == 1
