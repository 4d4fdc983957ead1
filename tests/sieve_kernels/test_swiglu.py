"""lowrank_swiglu: values and gradients against float64, and memory.

`test_operators` has what holds for all operators.
"""

import pytest
import torch
from gradients import check_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_bytes
from operators import DTYPES, GROUPED, gated_tensors, separate_gate_and_up
from pairwise import pairwise

from sieve_kernels import lowrank_swiglu
from sieve_kernels.core import wide_products
from sieve_kernels.lowrank import torch_backend
from sieve_kernels.mlp import reference
from sieve_kernels.mlp import torch_backend as glu

both = pytest.mark.parametrize("implementation", GROUPED, indirect=True)
activations = pytest.mark.parametrize("activation", reference.ACTIVATIONS)


def make(rows, n, m, ranks, dtype=torch.float32, device="cpu"):
    return gated_tensors(rows, n, m, ranks[0], dtype, device, ranks[1])


def check(tensors, activation="silu"):
    functions = (lowrank_swiglu, reference.swiglu, separate_gate_and_up)
    ours, definition, torchs = (lambda *t, f=f: f(*t, activation) for f in functions)
    check_gradients(ours, definition, tensors, torchs)


@pairwise(
    implementation=GROUPED,
    dtype=DTYPES,
    activation=reference.ACTIVATIONS,
)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("blocks", [1, 3])
def test_less_memory_than_separate_layers(monkeypatch, dtype, blocks):
    """y and, per block, up and an intermediate; separate layers hold gate, up and their product at one time."""
    # Other processors make copies in float32 as well.
    monkeypatch.setattr(wide_products, "multiplies_slowly", lambda dtype: False)
    rows, m, rank = blocks * torch_backend.BLOCK_ROWS, 48, 8
    tensors = make((rows,), 64, m, (rank, rank), dtype)
    ours = peak_bytes(lambda *t: glu.swiglu(*t, "silu"), *tensors)
    assert ours == dtype.itemsize * (rows * m + torch_backend.BLOCK_ROWS * (m + rank))
    assert peak_bytes(separate_gate_and_up, *tensors) == dtype.itemsize * rows * 3 * m > ours


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gradients_twice(activation):
    tensors = [t.double().requires_grad_() for t in make((2, 2), 4, 3, (3, 2))]
    assert torch.autograd.gradcheck(lambda *t: lowrank_swiglu(*t, activation), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: lowrank_swiglu(*t, activation), tensors)
