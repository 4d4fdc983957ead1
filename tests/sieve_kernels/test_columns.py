"""act_mul and gather_columns, which the GPU's library products end with: values against float64, gathered or not."""

import pytest
import torch
from accuracy import assert_accurate
from operators import DTYPES
from pairwise import pairwise

from sieve_kernels.mlp.reference import ACTIVATIONS

kernels = pytest.importorskip("sieve_kernels.pointwise.triton_columns")
INTEGERS = torch.int64, torch.int32
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])


def halves(T, m, dtype, device):
    """Two halves of one tensor, as a stacked gate and up are."""
    return torch.randn(T, 2 * m, device=device).to(dtype).chunk(2, 1)


def named(t, index):
    return t if index is None else t[:, index]


@pairwise(
    dtype=DTYPES,
    T_and_m=[(1, 1), (3, 70), (40, 2100), (300, 64), (0, 5)],
    activation=ACTIVATIONS,
    gathered=[(False, False), (True, True), (True, False), (False, True)],
)
def test_act_mul(dtype, T, m, activation, gathered, device):
    gate, up = halves(T, m, dtype, device)
    indices = [
        torch.randperm(m, device=device, dtype=kind) if one else None
        for one, kind in zip(gathered, INTEGERS, strict=True)
    ]
    parts = [named(t, index) for t, index in zip((gate, up), indices, strict=True)]
    act = ACTIVATIONS[activation]
    h = kernels.act_mul(gate, up, activation, *indices)
    assert_accurate(h, act(parts[0].double()) * parts[1].double(), act(parts[0]) * parts[1])


@pairwise(
    dtype=DTYPES,
    T_and_m=[(1, 1), (3, 70), (40, 2100), (300, 64), (0, 5)],
    kind=INTEGERS,
)
def test_gather_columns(dtype, T, m, kind, device):
    x, _ = halves(T, m, dtype, device)
    index, bias = torch.randperm(m, device=device, dtype=kind), torch.randn(m, device=device).to(dtype)
    assert torch.equal(kernels.gather_columns(x, index), x[:, index])
    torch.testing.assert_close(kernels.gather_columns(x, index, bias), x[:, index] + bias, rtol=0, atol=0)


def test_other_widths_and_layouts(device):
    """Columns may come from wider rows, more than once, and from rows and columns with strides."""
    x, bias = torch.randn(9, 50, device=device), torch.randn(60, device=device)[::2]
    index = torch.randint(0, 20, (60,), device=device)[::2]
    for source in (x[:, :20], x.T[:20].T, x[::2], torch.randn(20, 9, device=device).T):
        torch.testing.assert_close(kernels.gather_columns(source, index, bias), source[:, index] + bias)
        h = kernels.act_mul(source, x[: len(source), :30], "silu", index)
        torch.testing.assert_close(h, ACTIVATIONS["silu"](source[:, index]) * x[: len(source), :30])


@dtypes
def test_into_a_given_tensor(dtype, device):
    gate, up = halves(5, 40, dtype, device)
    whole = torch.zeros(5, 60, device=device, dtype=dtype)
    out = whole[:, 10:50]
    assert kernels.act_mul(gate, up, "gelu", None, None, out) is out
    assert torch.equal(out, kernels.act_mul(gate, up, "gelu"))
    assert whole[:, :10].count_nonzero() == whole[:, 50:].count_nonzero() == 0


def test_columns_that_do_not_exist_read_as_zero(device):
    x = torch.randn(3, 8, device=device)
    index = torch.tensor([-1, 8, 3], device=device)
    assert torch.equal(kernels.gather_columns(x, index)[:, :2], torch.zeros(3, 2, device=device))
    assert torch.equal(kernels.gather_columns(x, index)[:, 2], x[:, 3])


def test_a_launch_that_was_kept_serves_its_like_alone(device):
    """The same shapes at another alignment, with other strides, in another dtype, then the first once more."""
    data = torch.randn(2000, device=device)
    for start, stride in ((0, 96), (1, 96), (0, 100), (0, 96)):
        for dtype in (torch.float32, torch.float16):
            gate = data.to(dtype)[start:].as_strided((6, 40), (stride, 1))
            up = data.to(dtype)[start + 48 :].as_strided((6, 40), (stride, 1))
            torch.testing.assert_close(kernels.act_mul(gate, up, "relu"), gate.relu() * up)


def test_nan_propagates(device):
    gate, up = torch.ones(2, 4, device=device), torch.ones(2, 4, device=device)
    gate[0, 1] = up[1, 2] = torch.nan
    for activation in ACTIVATIONS:
        assert kernels.act_mul(gate, up, activation).isnan().nonzero().tolist() == [[0, 1], [1, 2]]


def test_tensors_of_other_classes_are_not_taken_for_one_another(device):
    class Named(torch.Tensor):
        pass

    for shape in ((4, 40), (3, 70), (4, 40)):
        gate, up = (torch.randn(shape, device=device).as_subclass(Named) for _ in range(2))
        h = kernels.act_mul(gate, up, "relu")
        torch.testing.assert_close(h.as_subclass(torch.Tensor), (gate.relu() * up).as_subclass(torch.Tensor))
