"""linear: values and gradients against float64, and its behaviour inside torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from gradients import check_gradients, values_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from sieve_kernels import linear
from sieve_kernels.lowrank import reference

both = pytest.mark.parametrize(
    "implementation", ["torch", "torch_training", "cpp", "triton", "triton_gemv"], indirect=True
)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])


def make(rows, n, m, dtype=torch.float32, device="cpu"):
    """x [*rows, n], W [m, n], bias [m], scaled so that y is of order 1."""
    shapes, scales = ((*rows, n), (m, n), (m,)), (1, max(n, 1) ** -0.5, 1)
    return [(torch.randn(s, device=device) * c).to(dtype) for s, c in zip(shapes, scales, strict=True)]


def check(tensors):
    check_gradients(linear, reference.dense, tensors, F.linear)


@both
@dtypes
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_in_every_dtype(implementation, dtype, biased, device):
    x, W, bias = make((2, 17), 50, 70, dtype, device)
    check([x, W, bias if biased else None])


@both
@dtypes
@pytest.mark.parametrize("rows", [1, 8, 33])
def test_few_rows_take_shares(implementation, dtype, rows, pretend, device):
    pretend(num_sms=132)
    check(make((rows,), 600, 70, dtype, device))


@both
@pytest.mark.parametrize(
    ("rows", "n", "m"),
    [((1,), 1, 1), ((3,), 130, 67), ((65,), 64, 64), ((), 33, 5), ((2, 0), 8, 6), ((4,), 5, 0), ((3,), 0, 4)],
)
def test_shapes(implementation, rows, n, m, device):
    check(make(rows, n, m, device=device))


@given(
    rows=st.lists(st.integers(0, 5), max_size=3),
    n=st.integers(1, 60),
    m=st.integers(1, 60),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_on_cpu(rows, n, m):
    """In float64, where the rule leaves room for the luck that one or two rounded numbers have."""
    check(make(rows, n, m, torch.float64))


@both
def test_strided_arguments(implementation, device):
    x, W, bias = make((30, 4), 40, 24, device=device)
    check([x.transpose(0, 1), W.T.contiguous().T, torch.stack([bias, bias], 1)[:, 0]])
    check([x[::2, :, ::2], W[:, ::2], bias])


@both
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_gradients_that_are_needed(implementation, wanted, device):
    tensors = make((6,), 9, 5, device=device)
    for i in wanted:
        tensors[i].requires_grad_()
    chosen = [tensors[i] for i in wanted]
    mine, theirs = (torch.autograd.grad(f(*tensors).sum(), chosen) for f in (linear, F.linear))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_twice():
    tensors = [t.double().requires_grad_() for t in make((2, 3), 5, 4)]
    assert torch.autograd.gradcheck(linear, tensors)
    assert torch.autograd.gradgradcheck(linear, tensors)


@both
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_nan_and_infinity_propagate(implementation, device):
    x, W, bias = make((4,), 8, 6, device=device)
    x[1, 2], x[2, 3] = torch.nan, torch.inf
    y = linear(x, W, bias)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert y[[0, 3]].isfinite().all()


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_input_same_bits(implementation, dtype, pretend, device):
    pretend(num_sms=132)
    tensors = make((7,), 600, 40, dtype, device)
    upstream = torch.ones(7, 40, device=device)
    for one, other in zip(*(values_and_gradients(linear, tensors, [upstream]) for _ in range(2)), strict=True):
        assert torch.equal(one, other)


@both
def test_offsets_beyond_32_bits(implementation):
    """A row 2³¹ numbers away from the first. The memory is never touched, so it costs nothing."""
    _, W, bias = make((3,), 16, 6, torch.float16)
    far = torch.from_numpy(np.zeros((1 << 31) + 64, dtype=np.int16)).view(torch.float16)
    x = far.as_strided((3, 16), (1 << 30, 1))
    x.copy_(torch.randn(3, 16))
    assert_accurate(
        linear(x, W, bias), reference.dense(x.double(), W.double(), bias.double()), F.linear(x.contiguous(), W, bias)
    )


def test_opcheck():
    x, W, bias = (t.requires_grad_() for t in make((2, 5), 8, 6))
    operators = torch.ops.sieve_kernels
    torch.library.opcheck(operators.linear, (x, W, bias))
    torch.library.opcheck(operators.linear, (x, W, None))
    for needed in ([True, True], [False, True]):
        torch.library.opcheck(operators.linear_backward, (torch.randn(2, 5, 6), x.detach(), W.detach(), needed))


def test_compiles_without_graph_breaks():
    def layer(x, W, bias):
        return linear(x.relu(), W, bias).square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 7):
        tensors = [t.requires_grad_() for t in make((rows,), 10, 6)]
        expected, result = layer(*tensors), compiled(*tensors)
        torch.testing.assert_close(result, expected)
        for one, other in zip(*(torch.autograd.grad(value, tensors) for value in (result, expected)), strict=True):
            torch.testing.assert_close(one, other)


def test_autocast_as_linear():
    tensors = [t.requires_grad_() for t in make((4,), 8, 6)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(*tensors)
        assert_accurate(y, reference.dense(*(t.double() for t in tensors)), F.linear(*tensors))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert tensors[1].grad.dtype == torch.float32


@both
@pytest.mark.parametrize(
    ("error", "change", "text"),
    [
        (ValueError, {"x": torch.zeros(4, 9)}, r"\[4, 9\].*W \[6, 8\]"),
        (ValueError, {"W": torch.zeros(8)}, r"W \[8\]"),
        (ValueError, {"bias": torch.zeros(5)}, r"bias \[5\]"),
        (ValueError, {"W": torch.zeros(6, 8, device="meta")}, "meta"),
        (TypeError, {"W": torch.zeros(6, 8, dtype=torch.bfloat16)}, r"float32.*bfloat16"),
        (TypeError, {"bias": torch.zeros(6, dtype=torch.float64)}, r"float32.*float64"),
        (TypeError, {"x": torch.zeros(4, 8, dtype=torch.int32)}, "int32"),
    ],
)
def test_bad_arguments(implementation, error, change, text):
    with pytest.raises(error, match=text):
        linear(**dict(zip(("x", "W", "bias"), make((4,), 8, 6), strict=True)) | change)
