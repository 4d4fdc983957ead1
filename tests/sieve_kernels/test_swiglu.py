"""lowrank_swiglu: values and gradients against float64, memory, and its behaviour inside torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from gradients import check_gradients, values_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_bytes

from sieve_kernels import lowrank_swiglu
from sieve_kernels.lowrank import torch_backend
from sieve_kernels.mlp import reference
from sieve_kernels.mlp import torch_backend as glu

both = pytest.mark.parametrize(
    "implementation", ["torch", "torch_gpu", "torch_training", "cpp", "triton", "triton_gemv"], indirect=True
)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
activations = pytest.mark.parametrize("activation", reference.ACTIVATIONS)


def make(rows, n, m, ranks, dtype=torch.float32, device="cpu"):
    """x [*rows, n], then A [rank, n] and B [m, rank] of gate and of up."""
    shapes = [(*rows, n)] + [s for rank in ranks for s in ((rank, n), (m, rank))]
    return [(torch.randn(s, device=device) * (s[-1] ** -0.5 if i else 1)).to(dtype) for i, s in enumerate(shapes)]


def separate(x, A_gate, B_gate, A_up, B_up, activation="silu"):
    """What torch computes in the same dtype."""
    act = reference.ACTIVATIONS[activation]
    return act(F.linear(F.linear(x, A_gate), B_gate)) * F.linear(F.linear(x, A_up), B_up)


def check(tensors, activation="silu"):
    functions = (lowrank_swiglu, reference.swiglu, separate)
    ours, definition, torchs = (lambda *t, f=f: f(*t, activation) for f in functions)
    check_gradients(ours, definition, tensors, torchs)


@both
@dtypes
@activations
def test_values_and_gradients_in_every_dtype(implementation, dtype, activation, device):
    check(make((2, 17), 50, 70, (20, 7), dtype, device), activation)


@both
@pytest.mark.parametrize(
    ("rows", "n", "m", "ranks"),
    [
        ((1,), 1, 1, (1, 1)),
        ((3,), 130, 67, (1, 40)),
        ((65,), 64, 64, (64, 64)),
        ((), 33, 5, (3, 2)),
        ((2, 0), 8, 6, (3, 2)),
    ],
)
def test_shapes(implementation, rows, n, m, ranks, device):
    check(make(rows, n, m, ranks, device=device))


@given(
    rows=st.lists(st.integers(0, 5), max_size=3),
    n=st.integers(1, 60),
    m=st.integers(1, 60),
    ranks=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    activation=st.sampled_from(list(reference.ACTIVATIONS)),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_on_cpu(rows, n, m, ranks, activation):
    """In float64, where the rule leaves room for the luck that one or two rounded numbers have."""
    check(make(rows, n, m, ranks, torch.float64), activation)


@both
@activations
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_far_from_zero(implementation, activation, device):
    """Where an exponential over- or underflows the activation is a line or nothing."""
    gate = torch.tensor([-200.0, -90.0, -20.0, -0.0, 1e-6, 20.0, 90.0, 200.0], device=device)[:, None]
    one = torch.ones(1, 1, device=device)
    inputs = torch.cat([gate, torch.ones_like(gate)], 1).requires_grad_()
    up = torch.tensor([[0.0, 1.0]], device=device)
    gate_only = torch.tensor([[1.0, 0.0]], device=device)
    y = lowrank_swiglu(inputs, gate_only, one, up, one, activation)
    torch.testing.assert_close(y, reference.ACTIVATIONS[activation](gate))
    found, expected = (
        torch.autograd.grad(f(inputs, gate_only, one, up, one, activation).sum(), inputs)[0]
        for f in (lowrank_swiglu, reference.swiglu)
    )
    torch.testing.assert_close(found, expected)


@both
def test_strided_arguments(implementation, device):
    x, *factors = make((30, 4), 40, 24, (10, 6), device=device)
    check([x.transpose(0, 1), *(t.T.contiguous().T for t in factors)])


def test_blocks_of_tokens_join(monkeypatch):
    monkeypatch.setenv("SIEVE_KERNELS", "torch")
    monkeypatch.setattr(torch_backend, "BLOCK_ROWS", 10)
    for dtype in (torch.bfloat16, torch.float32):
        check(make((3, 7), 12, 9, (4, 3), dtype))


@both
def test_few_rows_take_shares(implementation, pretend, device):
    pretend(num_sms=132)
    check(make((2,), 600, 40, (20, 7), torch.bfloat16, device))


@both
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (0, 4), (2, 3)])
def test_only_gradients_that_are_needed(implementation, wanted, device):
    tensors = make((6,), 9, 5, (3, 2), device=device)
    for i in wanted:
        tensors[i].requires_grad_()
    chosen = [tensors[i] for i in wanted]
    mine, theirs = (torch.autograd.grad(f(*tensors).sum(), chosen) for f in (lowrank_swiglu, separate))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gradients_twice(activation):
    tensors = [t.double().requires_grad_() for t in make((2, 2), 4, 3, (3, 2))]
    assert torch.autograd.gradcheck(lambda *t: lowrank_swiglu(*t, activation), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: lowrank_swiglu(*t, activation), tensors)


@both
@activations
@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
def test_nan_propagates(implementation, activation, device):
    x, *factors = make((4,), 8, 6, (3, 2), device=device)
    x[1, 2] = torch.nan
    x.requires_grad_()
    y = lowrank_swiglu(x, *factors, activation)
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()
    (dx,) = torch.autograd.grad(y[[0, 2, 3]].sum(), x)
    assert dx[[0, 2, 3]].isfinite().all()


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_input_same_bits(implementation, dtype, device):
    tensors = make((70,), 33, 40, (9, 5), dtype, device)
    upstream = torch.ones(70, 40, device=device)
    for one, other in zip(*(values_and_gradients(lowrank_swiglu, tensors, [upstream]) for _ in range(2)), strict=True):
        assert torch.equal(one, other)


@both
def test_offsets_beyond_32_bits(implementation):
    """A row 2³¹ numbers away from the first. The memory is never touched, so it costs nothing."""
    _, *factors = make((3,), 16, 6, (3, 2), torch.float16)
    far = torch.from_numpy(np.zeros((1 << 31) + 64, dtype=np.int16)).view(torch.float16)
    x = far.as_strided((3, 16), (1 << 30, 1))
    x.copy_(torch.randn(3, 16))
    exact = reference.swiglu(*(t.double() for t in (x, *factors)))
    assert_accurate(lowrank_swiglu(x, *factors), exact, separate(x.contiguous(), *factors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("blocks", [1, 3])
def test_less_memory_than_separate_layers(dtype, blocks):
    """y and, per block, up and an intermediate; separate layers hold gate, up and their product at one time."""
    rows, m, rank = blocks * torch_backend.BLOCK_ROWS, 48, 8
    tensors = make((rows,), 64, m, (rank, rank), dtype)
    ours = peak_bytes(lambda *t: glu.swiglu(*t, "silu"), *tensors)
    assert ours == dtype.itemsize * (rows * m + torch_backend.BLOCK_ROWS * (m + rank))
    assert peak_bytes(separate, *tensors) == dtype.itemsize * rows * 3 * m > ours


def test_opcheck():
    tensors = [t.requires_grad_() for t in make((2, 5), 8, 6, (3, 2))]
    operators = torch.ops.sieve_kernels
    torch.library.opcheck(operators.lowrank_swiglu, (*tensors, "gelu"))
    grad, *plain = (t.detach() for t in (torch.randn(2, 5, 6), *tensors))
    for needed in ([True] * 5, [False, False, True, True, False]):
        torch.library.opcheck(operators.lowrank_swiglu_backward, (grad, *plain, "silu", needed))


def test_compiles_without_graph_breaks():
    def layer(x, *factors):
        return lowrank_swiglu(x.relu(), *factors).square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 7):
        tensors = [t.requires_grad_() for t in make((rows,), 10, 6, (3, 2))]
        expected, result = layer(*tensors), compiled(*tensors)
        torch.testing.assert_close(result, expected)
        for one, other in zip(*(torch.autograd.grad(value, tensors) for value in (result, expected)), strict=True):
            torch.testing.assert_close(one, other)


def test_autocast_as_linear():
    tensors = [t.requires_grad_() for t in make((4,), 8, 6, (3, 2))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lowrank_swiglu(*tensors)
        assert_accurate(y, reference.swiglu(*(t.double() for t in tensors)), separate(*tensors))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert tensors[1].grad.dtype == torch.float32


@both
@pytest.mark.parametrize(
    ("error", "change", "text"),
    [
        (ValueError, {"activation": "swish"}, "silu, gelu, gelu_tanh, relu, got 'swish'"),
        (ValueError, {"x": torch.zeros(4, 9)}, r"\[4, 9\].*A_gate \[3, 8\].*\[6, 3\]"),
        (ValueError, {"B_up": torch.zeros(6, 4)}, r"A_up \[2, 8\].*B_up \[6, 4\]"),
        (ValueError, {"B_up": torch.zeros(5, 2)}, r"B_gate \[6, 3\].*B_up \[5, 2\]"),
        (TypeError, {"A_up": torch.zeros(2, 8, dtype=torch.bfloat16)}, r"float32.*A_up.*bfloat16"),
        (TypeError, {"x": torch.zeros(4, 8, dtype=torch.int32)}, "int32"),
    ],
)
def test_bad_arguments(implementation, error, change, text):
    names = ("x", "A_gate", "B_gate", "A_up", "B_up")
    with pytest.raises(error, match=text):
        lowrank_swiglu(**dict(zip(names, make((4,), 8, 6, (3, 2)), strict=True)) | change)
