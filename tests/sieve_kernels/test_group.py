"""lowrank_linear_group: values and gradients against float64, and memory.

`test_operators` has what holds for all operators.
"""

import pytest
import torch
from accuracy import assert_accurate
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_bytes
from operators import DTYPES, GROUPED, OPERATORS, group_tensors, separate_pairs, split
from pairwise import pairwise

from sieve_kernels import lowrank_linear_group
from sieve_kernels.core import dispatch, wide_products
from sieve_kernels.lowrank import reference, torch_backend

both = pytest.mark.parametrize("implementation", GROUPED, indirect=True)
SIZES = ((70, 20), (33, 7), (1, 1))


OPERATOR = OPERATORS["lowrank_linear_group"]
ours, check = OPERATOR.ours, OPERATOR.check


def make(rows, n, sizes=SIZES, dtype=torch.float32, device="cpu"):
    return group_tensors(rows, n, 0, 0, dtype, device, sizes)


@pairwise(implementation=GROUPED, dtype=DTYPES, biased=[True, False])
def test_values_and_gradients_in_every_dtype(implementation, dtype, biased, device):
    tensors = make((2, 17), 50, dtype=dtype, device=device)
    check(*(tensors if biased else [*tensors[:-3], None, None, None]))


@both
@pytest.mark.parametrize(
    ("rows", "n", "sizes"),
    [((), 33, ((5, 3),)), ((1,), 1, ((1, 1), (130, 1))), ((65,), 64, ((64, 64), (128, 64))), ((3, 1), 300, SIZES)],
)
def test_shapes(implementation, rows, n, sizes, device):
    check(*make(rows, n, sizes, device=device))


@given(
    rows=st.lists(st.integers(0, 5), max_size=3),
    n=st.integers(1, 60),
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=4),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_on_cpu(rows, n, sizes):
    """In float64, where the rule leaves room for the luck that one or two rounded numbers have."""
    check(*make(rows, n, sizes, torch.float64))


def test_blocks_of_tokens_join(monkeypatch):
    monkeypatch.setenv("SIEVE_KERNELS", "torch")
    monkeypatch.setattr(torch_backend, "BLOCK_ROWS", 10)
    for dtype in (torch.bfloat16, torch.float32):
        check(*make((3, 7), 12, dtype=dtype))
        check(*make((21,), 12, dtype=dtype)[:-3], None, None, None)


@both
def test_few_rows_take_shares(implementation, pretend, device):
    pretend(num_sms=132)
    check(*make((2,), 600, dtype=torch.bfloat16, device=device))


@both
def test_an_output_that_nobody_uses(implementation, device):
    tensors = [t.requires_grad_() for t in make((6,), 9, SIZES[:2], device=device)]
    mine, theirs = (
        torch.autograd.grad(f(*tensors)[1].sum(), tensors, materialize_grads=True) for f in (ours, OPERATOR.torchs)
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@both
def test_some_biases(implementation, device):
    x, A, A2, B, B2, bias, _ = make((6,), 9, SIZES[:2], device=device)
    y, y2 = lowrank_linear_group(x, [A, A2], [B, B2], [bias, None])
    torch.testing.assert_close(y, reference.linear(x, A, B, bias))
    torch.testing.assert_close(y2, reference.linear(x, A2, B2))


@pytest.mark.parametrize("implementation", ["triton_grouped"], indirect=True)
@pytest.mark.parametrize(
    ("dtype", "rows", "n", "sizes", "pivoted"),
    [
        (torch.bfloat16, (2, 65), 1200, ((72, 40), (136, 24), (200, 136)), False),
        (torch.float16, (2, 65), 1200, ((72, 40), (136, 24), (200, 136)), True),
        (torch.float16, (256,), 136, ((256, 128), (128, 64)), False),
        (torch.bfloat16, (256,), 136, ((256, 128), (128, 64)), True),
        (torch.bfloat16, (500,), 80, SIZES, False),
    ],
)
@torch.no_grad()
def test_some_rows_by_tiles_of_all_layers(implementation, dtype, pivoted, rows, n, sizes, device, pretend):
    """Sums split, several tiles each way, edges; and layers that tiles cannot be copied of."""
    if dispatch.INTERPRETED:
        pretend(has_descriptors=True, num_sms=20)
    x, *rest = make(rows, n, sizes, dtype, device)
    count = len(sizes)
    As, Bs = rest[:count], rest[count : 2 * count]
    if not pivoted:
        ys = dispatch.implementation("lowrank_linear_group", x, 8)(x, As, Bs, None)
        exact = reference.group(x.double(), [A.double() for A in As], [B.double() for B in Bs])
        for y, e, t in zip(ys, exact, separate_pairs(x, As, Bs, None), strict=True):
            assert_accurate(y, e, t)
        return
    orders = [torch.randperm(A.shape[0] + C.shape[0], device=device) for A, C in zip(As, Bs, strict=True)]
    ys = dispatch.implementation("lowrank_linear_group", x, 8)(x, As, Bs, None, orders)
    for y, A, C, order in zip(ys, As, Bs, orders, strict=True):
        exact, torchs = (reference.pivoted(f(x), f(A), f(C), order) for f in (torch.Tensor.double, torch.clone))
        assert_accurate(y, exact, torchs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_less_memory_than_separate_layers(monkeypatch, dtype):
    """Outputs, and the intermediate of one block; separate layers hold an intermediate of all tokens."""
    # Other processors make copies in float32 as well.
    monkeypatch.setattr(wide_products, "multiplies_slowly", lambda dtype: False)
    rows, sizes = 3 * torch_backend.BLOCK_ROWS, ((48, 24), (16, 8), (16, 24))
    tensors = [*make((rows,), 64, sizes, dtype)[:-3], None, None, None]
    outputs, intermediate = rows * sum(m for m, _ in sizes) * dtype.itemsize, 24 * dtype.itemsize
    assert peak_bytes(split(torch_backend.group), *tensors) == outputs + torch_backend.BLOCK_ROWS * intermediate
    assert peak_bytes(split(separate_pairs), *tensors) == outputs + rows * intermediate
