"""linear: values and gradients against float64, of many shapes. `test_operators` has what holds for all operators."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import DTYPES, LAYER, OPERATORS, dense_tensors
from pairwise import pairwise

both = pytest.mark.parametrize("implementation", LAYER, indirect=True)


make, check = dense_tensors, OPERATORS["linear"].check


@pairwise(implementation=LAYER, dtype=DTYPES, biased=[True, False])
def test_values_and_gradients_in_every_dtype(implementation, dtype, biased, device):
    x, W, bias = make((2, 17), 50, 70, dtype=dtype, device=device)
    check(x, W, bias if biased else None)


@pairwise(implementation=LAYER, dtype=DTYPES, rows=[1, 8, 33])
def test_few_rows_take_shares(implementation, dtype, rows, pretend, device):
    pretend(num_sms=132)
    check(*make((rows,), 600, 70, dtype=dtype, device=device))


@both
@pytest.mark.parametrize(
    ("rows", "n", "m"),
    [((1,), 1, 1), ((3,), 130, 67), ((65,), 64, 64), ((), 33, 5), ((2, 0), 8, 6), ((4,), 5, 0), ((3,), 0, 4)],
)
def test_shapes(implementation, rows, n, m, device):
    check(*make(rows, n, m, device=device))


@given(
    rows=st.lists(st.integers(0, 5), max_size=3),
    n=st.integers(1, 60),
    m=st.integers(1, 60),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_on_cpu(rows, n, m):
    """In float64, where the rule leaves room for the luck that one or two rounded numbers have."""
    check(*make(rows, n, m, dtype=torch.float64))
