"""lowrank_linear_population: values and gradients against float64, ranks, and its behaviour inside torch."""

import numpy as np
import pytest
import torch
from accuracy import assert_accurate
from gradients import check_gradients, values_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from sieve_kernels import lowrank_linear_population
from sieve_kernels.core import dispatch
from sieve_kernels.lowrank import reference, torch_backend

both = pytest.mark.parametrize("implementation", ["torch", "cpp", "triton"], indirect=True)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])


def make(candidates, rows, n, m, rank, dtype=torch.float32, device="cpu"):
    """x [candidates, rows, n], A [rank, n], B [m, rank], and ranks [candidates]."""
    shapes, scales = ((candidates, rows, n), (rank, n), (m, rank)), (1, n**-0.5, rank**-0.5)
    tensors = [(torch.randn(s, device=device) * c).to(dtype) for s, c in zip(shapes, scales, strict=True)]
    return tensors, torch.randint(1, rank + 1, (candidates,), device=device)


def loop(x, A, B, ranks):
    """What torch computes in the same dtype, one candidate after the other."""
    ys = [reference.linear(rows, A[:r], B[:, :r]) for rows, r in zip(x, ranks.tolist(), strict=True)]
    return torch.stack(ys) if ys else x.new_empty((0, x.shape[1], len(B))) + 0 * (x.sum() + A.sum() + B.sum())


def check(tensors, ranks):
    check_gradients(lambda *t: lowrank_linear_population(*t, ranks), lambda *t: loop(*t, ranks), tensors)


@both
@dtypes
@pytest.mark.parametrize("rows", [7, 70])
def test_values_and_gradients_in_every_dtype(implementation, dtype, rows, device):
    check(*make(5, rows, 50, 70, 40, dtype, device))


@both
@pytest.mark.parametrize(
    ("candidates", "rows", "n", "m", "rank"),
    [(1, 1, 1, 1, 1), (3, 1, 130, 67, 200), (70, 1, 64, 64, 64), (4, 0, 8, 6, 3), (0, 5, 8, 6, 3), (9, 65, 5, 7, 2)],
)
def test_shapes(implementation, candidates, rows, n, m, rank, device):
    check(*make(candidates, rows, n, m, rank, device=device))


@given(
    candidates=st.integers(0, 6),
    rows=st.sampled_from([0, 1, 5, torch_backend.FULL_ROWS]),
    n=st.integers(1, 60),
    m=st.integers(1, 60),
    rank=st.integers(1, 20),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_on_cpu(candidates, rows, n, m, rank):
    """In float64, where the rule leaves room for the luck that one or two rounded numbers have."""
    check(*make(candidates, rows, n, m, rank, torch.float64))


def test_definition_is_a_slice_per_candidate():
    (x, A, B), ranks = make(6, 3, 8, 7, 5, torch.float64)
    torch.testing.assert_close(reference.population(x, A, B, ranks), loop(x, A, B, ranks))


@both
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_kinds_of_ranks(implementation, kind, device):
    tensors, ranks = make(5, 3, 8, 7, 5, device=device)
    expected = loop(*tensors, ranks)
    torch.testing.assert_close(lowrank_linear_population(*tensors, ranks.to(kind)), expected)
    strided = torch.stack([ranks, torch.zeros_like(ranks)], 1).to(kind)[:, 0]
    torch.testing.assert_close(lowrank_linear_population(*tensors, strided), expected)


@both
def test_strided_arguments(implementation, device):
    (x, A, B), ranks = make(4, 30, 40, 24, 10, device=device)
    check([x.transpose(0, 1).contiguous().transpose(0, 1), A.T.contiguous().T, B.T.contiguous().T], ranks)
    check([x[:1].expand(4, 30, 40), A, B], ranks)
    check([x[::2, ::3, ::2], A[:, ::2], B], ranks[:2])


@both
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_gradients_that_are_needed(implementation, wanted, device):
    tensors, ranks = make(4, 6, 9, 5, 3, device=device)
    for i in wanted:
        tensors[i].requires_grad_()
    chosen = [tensors[i] for i in wanted]
    functions = (lowrank_linear_population, loop)
    mine, theirs = (torch.autograd.grad(f(*tensors, ranks).sum(), chosen) for f in functions)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_twice():
    tensors, ranks = make(3, 2, 4, 3, 3)
    tensors = [t.double().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: lowrank_linear_population(*t, ranks), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: lowrank_linear_population(*t, ranks), tensors)


@both
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_nan_and_infinity_propagate(implementation, device):
    (x, A, B), ranks = make(4, 3, 8, 6, 5, device=device)
    x[1, 1, 2], x[2, 0, 3] = torch.nan, torch.inf
    y = lowrank_linear_population(x, A, B, ranks)
    assert y[1, 1].isnan().all()
    assert not y[2, 0].isfinite().any()
    assert y[[0, 3]].isfinite().all()
    assert y[1, [0, 2]].isfinite().all()


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_input_same_bits(implementation, dtype, device):
    tensors, ranks = make(5, 14, 33, 40, 9, dtype, device)
    upstream = torch.ones(5, 14, 40, device=device)
    one, other = (
        values_and_gradients(lambda *t: lowrank_linear_population(*t, ranks), tensors, [upstream]) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@both
def test_offsets_beyond_32_bits(implementation):
    """A candidate 2³¹ numbers away from the first. The memory is never touched, so it costs nothing."""
    (_, A, B), ranks = make(3, 1, 16, 6, 3, torch.float16)
    far = torch.from_numpy(np.zeros((1 << 31) + 64, dtype=np.int16)).view(torch.float16)
    x = far.as_strided((3, 1, 16), (1 << 30, 16, 1))
    x.copy_(torch.randn(3, 1, 16))
    exact = loop(x.double(), A.double(), B.double(), ranks)
    assert_accurate(lowrank_linear_population(x, A, B, ranks), exact, loop(x, A, B, ranks))


@pytest.mark.skipif(not dispatch.INTERPRETED, reason="calls a kernel with tensors on CPU")
def test_kernel_takes_the_nearest_rank():
    """What a GPU does where the host does not look."""
    from sieve_kernels.lowrank.triton.population import population

    (x, A, B), _ = make(4, 3, 8, 6, 5)
    ranks, nearest = torch.tensor([-3, 0, 6, 1000]), torch.tensor([1, 1, 5, 5])
    torch.testing.assert_close(population(x, A, B, ranks), loop(x, A, B, nearest))


def test_opcheck():
    tensors, ranks = make(3, 5, 8, 6, 4)
    operators = torch.ops.sieve_kernels
    torch.library.opcheck(operators.lowrank_linear_population, (*(t.requires_grad_() for t in tensors), ranks))
    plain = [t.detach() for t in tensors]
    for needed in ([True, True, True], [False, True, False]):
        arguments = (torch.randn(3, 5, 6), *plain, ranks, needed)
        torch.library.opcheck(operators.lowrank_linear_population_backward, arguments)


def test_compiles_without_graph_breaks():
    def layer(x, A, B, ranks):
        return lowrank_linear_population(x.relu(), A, B, ranks).square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for candidates in (4, 7):
        tensors, ranks = make(candidates, 3, 10, 6, 5)
        tensors = [t.requires_grad_() for t in tensors]
        expected, result = layer(*tensors, ranks), compiled(*tensors, ranks)
        torch.testing.assert_close(result, expected)
        for one, other in zip(*(torch.autograd.grad(value, tensors) for value in (result, expected)), strict=True):
            torch.testing.assert_close(one, other)


def test_autocast_as_linear():
    tensors, ranks = make(3, 4, 8, 6, 5)
    tensors = [t.requires_grad_() for t in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lowrank_linear_population(*tensors, ranks)
        exact = reference.population(*(t.double() for t in tensors), ranks)
        assert_accurate(y, exact, loop(*tensors, ranks))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert tensors[1].grad.dtype == torch.float32


@both
@pytest.mark.parametrize(
    ("error", "change", "text"),
    [
        (ValueError, {"x": torch.zeros(4, 8)}, r"x \[P, T, n\].*\[4, 8\]"),
        (ValueError, {"ranks": torch.ones(3, dtype=torch.int64)}, r"ranks \[3\]"),
        (ValueError, {"ranks": torch.tensor([1, 2, 3, 6])}, "between 1 and 5, got 1 to 6"),
        (ValueError, {"ranks": torch.tensor([0, 2, 3, 5])}, "between 1 and 5, got 0 to 5"),
        (ValueError, {"B": torch.zeros(6, 4)}, r"\[5, 8\].*\[6, 4\]"),
        (ValueError, {"ranks": torch.ones(4, dtype=torch.int64, device="meta")}, "meta"),
        (TypeError, {"ranks": torch.ones(4)}, "int64 or int32.*float32"),
        (TypeError, {"A": torch.zeros(5, 8, dtype=torch.bfloat16)}, r"float32.*bfloat16"),
        (TypeError, {"x": torch.zeros(4, 3, 8, dtype=torch.int32)}, "int32"),
    ],
)
def test_bad_arguments(implementation, error, change, text):
    tensors, ranks = make(4, 3, 8, 6, 5)
    with pytest.raises(error, match=text):
        lowrank_linear_population(**dict(zip(("x", "A", "B"), tensors, strict=True)) | {"ranks": ranks} | change)
