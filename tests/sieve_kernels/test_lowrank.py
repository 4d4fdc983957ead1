"""lowrank_linear: values and gradients against float64, slices, and its behaviour inside torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from hypothesis import given, settings
from hypothesis import strategies as st

from sieve_kernels import lowrank_linear
from sieve_kernels.core import dispatch
from sieve_kernels.lowrank import reference

every = pytest.mark.parametrize(
    "implementation", ["torch", "torch_training", "cpp", "triton", "triton_fused", "triton_gemv"], indirect=True
)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])


def make(rows, n, m, rank, dtype=torch.float32, device="cpu"):
    """x [*rows, n], A [rank, n], B [m, rank], bias [m], scaled so that y is of order 1."""
    shapes = ((*rows, n), (rank, n), (m, rank), (m,))
    scales = (1, n**-0.5, rank**-0.5, 1)
    return [(torch.randn(s, device=device) * c).to(dtype) for s, c in zip(shapes, scales, strict=True)]


def two_products(x, A, B, bias=None):
    """What torch computes in the same dtype."""
    return F.linear(F.linear(x, A), B, bias)


def gradients(function, tensors, upstream):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], upstream.to(y.dtype))]


def check(x, A, B, bias):
    """Value and all gradients of lowrank_linear at these arguments."""
    tensors = (x, A, B, bias)
    upstream = torch.randn(*x.shape[:-1], B.shape[0], device=x.device).to(x.dtype)
    exact = gradients(reference.linear, [None if t is None else t.double() for t in tensors], upstream.double())
    torchs = gradients(two_products, tensors, upstream)
    for ours, e, t in zip(gradients(lowrank_linear, tensors, upstream), exact, torchs, strict=True):
        assert_accurate(ours, e, t)


@every
@dtypes
@pytest.mark.parametrize("biased", [True, False])
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
def test_strided_arguments(implementation, device):
    x, A, B, bias = make((30, 4), 40, 24, 10, device=device)
    check(x.transpose(0, 1), A.T.contiguous().T, B.T.contiguous().T, torch.stack([bias, bias], 1)[:, 0])
    check(x[::2, :, ::2], A[:, ::2], B[::3], bias[::3])


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


@every
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 2), (1, 3)])
def test_only_gradients_that_are_needed(implementation, wanted, device):
    tensors = make((6,), 9, 5, 3, device=device)
    for i in wanted:
        tensors[i].requires_grad_()
    lowrank_linear(*tensors).sum().backward()
    ours = [t.grad for t in tensors]
    for t in tensors:
        t.grad = None
    two_products(*tensors).sum().backward()
    for i, (mine, t) in enumerate(zip(ours, tensors, strict=True)):
        assert (mine is not None) == (i in wanted)
        if mine is not None:
            torch.testing.assert_close(mine, t.grad)


def test_gradients_twice():
    tensors = [t.double().requires_grad_() for t in make((2, 3), 5, 4, 3)]
    assert torch.autograd.gradcheck(lambda *t: lowrank_linear(*t, rank=2), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: lowrank_linear(*t, rank=2), tensors)


@every
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_nan_and_infinity_propagate(implementation, device):
    x, A, B, bias = make((4,), 8, 6, 3, device=device)
    x[1, 2], x[2, 3] = torch.nan, torch.inf
    y = lowrank_linear(x, A, B, bias)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert y[[0, 3]].isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_input_same_bits(implementation, dtype, device):
    tensors = make((70,), 33, 40, 9, dtype, device)
    upstream = torch.ones(70, 40, device=device, dtype=dtype)
    for one, other in zip(*(gradients(lowrank_linear, tensors, upstream) for _ in range(2)), strict=True):
        assert torch.equal(one, other)


@every
def test_offsets_beyond_32_bits(implementation):
    """A row 2³¹ numbers away from the first. The memory is never touched, so it costs nothing."""
    _, A, B, bias = make((3,), 16, 6, 3, torch.float16)
    far = torch.from_numpy(np.zeros((1 << 31) + 64, dtype=np.int16)).view(torch.float16)
    x = far.as_strided((3, 16), (1 << 30, 1))
    x.copy_(torch.randn(3, 16))
    exact = reference.linear(*(t.double() for t in (x, A, B, bias)))
    assert_accurate(lowrank_linear(x, A, B, bias), exact, two_products(x.contiguous(), A, B, bias))


def test_opcheck():
    x, A, B, bias = (t.requires_grad_() for t in make((2, 5), 8, 6, 3))
    operators = torch.ops.sieve_kernels
    torch.library.opcheck(operators.lowrank_linear, (x, A, B, bias))
    torch.library.opcheck(operators.lowrank_linear, (x, A[:2], B[:, :2], None))
    grad = torch.randn(2, 5, 6)
    plain = [t.detach() for t in (grad, x, A, B)]
    for needed in ([True, True, True], [False, True, False]):
        torch.library.opcheck(operators.lowrank_linear_backward, (*plain, needed))


def test_compiles_without_graph_breaks():
    """One graph for every rank and number of rows, our operator in it, forward and backward."""
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
    assert any("sieve_kernels.lowrank_linear" in str(node.target) for node in graphs[0].graph.nodes)


def test_autocast_as_linear():
    x, A, B, bias = (t.requires_grad_() for t in make((4,), 8, 6, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lowrank_linear(x, A, B, bias)
        exact = lowrank_linear(*(t.double() for t in (x, A, B, bias)))
        assert exact.dtype == torch.float64
        assert_accurate(y, exact, two_products(x, A, B, bias))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert A.grad.dtype == torch.float32


@every
@pytest.mark.parametrize(
    ("error", "change", "text"),
    [
        (ValueError, {"x": torch.zeros(4, 9)}, r"\[4, 9\].*\[3, 8\].*\[6, 3\]"),
        (ValueError, {"B": torch.zeros(6, 4)}, r"\[3, 8\].*\[6, 4\]"),
        (ValueError, {"A": torch.zeros(8)}, r"A \[8\]"),
        (ValueError, {"bias": torch.zeros(5)}, r"bias \[5\]"),
        (ValueError, {"A": torch.zeros(0, 8), "B": torch.zeros(6, 0)}, "R ≥ 1"),
        (ValueError, {"rank": 0}, "between 1 and 3, got 0"),
        (ValueError, {"rank": 4}, "between 1 and 3, got 4"),
        (ValueError, {"A": torch.zeros(3, 8, device="meta")}, "meta"),
        (TypeError, {"A": torch.zeros(3, 8, dtype=torch.bfloat16)}, r"float32.*bfloat16"),
        (TypeError, {"bias": torch.zeros(6, dtype=torch.float64)}, r"float32.*float64"),
        (TypeError, {"x": torch.zeros(4, 8, dtype=torch.int32)}, "int32"),
    ],
)
def test_bad_arguments(implementation, error, change, text):
    arguments = dict(zip(("x", "A", "B", "bias"), make((4,), 8, 6, 3), strict=True)) | change
    with pytest.raises(error, match=text):
        lowrank_linear(**arguments)
