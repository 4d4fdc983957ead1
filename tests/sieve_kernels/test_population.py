"""lowrank_linear_population: values and gradients against float64, and ranks.

`test_operators` has what holds for all operators.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import OPERATORS, one_by_one, population_tensors

from sieve_kernels import lowrank_linear_population
from sieve_kernels.core import dispatch
from sieve_kernels.lowrank import reference, torch_backend

both = pytest.mark.parametrize("implementation", ["torch", "cpp", "triton"], indirect=True)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])


make, check = population_tensors, OPERATORS["lowrank_linear_population"].check


@both
@dtypes
@pytest.mark.parametrize("rows", [7, 70])
def test_values_and_gradients_in_every_dtype(implementation, dtype, rows, device):
    check(*make((5, rows), 50, 70, 40, dtype, device))


@both
@pytest.mark.parametrize(
    ("candidates", "rows", "n", "m", "rank"),
    [(1, 1, 1, 1, 1), (3, 1, 130, 67, 200), (70, 1, 64, 64, 64), (4, 0, 8, 6, 3), (0, 5, 8, 6, 3), (9, 65, 5, 7, 2)],
)
def test_shapes(implementation, candidates, rows, n, m, rank, device):
    check(*make((candidates, rows), n, m, rank, device=device))


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
    check(*make((candidates, rows), n, m, rank, torch.float64))


def test_definition_is_a_slice_per_candidate():
    x, A, B, ranks = make((6, 3), 8, 7, 5, torch.float64)
    torch.testing.assert_close(reference.population(x, A, B, ranks), one_by_one(x, A, B, ranks))


@both
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_kinds_of_ranks(implementation, kind, device):
    *tensors, ranks = make((5, 3), 8, 7, 5, device=device)
    expected = one_by_one(*tensors, ranks)
    torch.testing.assert_close(lowrank_linear_population(*tensors, ranks.to(kind)), expected)
    strided = torch.stack([ranks, torch.zeros_like(ranks)], 1).to(kind)[:, 0]
    torch.testing.assert_close(lowrank_linear_population(*tensors, strided), expected)


@pytest.mark.skipif(not dispatch.INTERPRETED, reason="calls a kernel with tensors on CPU")
def test_kernel_takes_the_nearest_rank():
    """What a GPU does where the host does not look."""
    from sieve_kernels.lowrank.triton.population import population

    x, A, B, _ = make((4, 3), 8, 6, 5)
    ranks, nearest = torch.tensor([-3, 0, 6, 1000]), torch.tensor([1, 1, 5, 5])
    torch.testing.assert_close(population(x, A, B, ranks), one_by_one(x, A, B, nearest))
