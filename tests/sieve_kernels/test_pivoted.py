"""lowrank_linear_pivoted: values and gradients against float64, and the permutation.

`test_operators` has what holds for all operators.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import DTYPES, GROUPED, OPERATORS, pivoted_tensors
from pairwise import pairwise

from sieve_kernels import lowrank_linear, lowrank_linear_pivoted, lowrank_mlp
from sieve_kernels.core import dispatch, library
from sieve_kernels.lowrank import checks, reference, torch_backend_gpu

every = pytest.mark.parametrize("implementation", GROUPED, indirect=True)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


make, check = pivoted_tensors, OPERATORS["lowrank_linear_pivoted"].check


def test_definition():
    """The two halves of y, row by row, and the same map as the pair whose B holds the identity's rows."""
    x, A, C, permutation, bias = make((5,), 9, 7, 3, torch.float64)
    y = reference.pivoted(x, A, C, permutation, bias)
    B = torch.zeros(7, 3, dtype=torch.float64)
    for i, row in enumerate(permutation.tolist()):
        B[row] = torch.eye(3)[i] if i < 3 else C[i - 3]
    torch.testing.assert_close(y, reference.linear(x, A, B, bias))
    torch.testing.assert_close(lowrank_linear_pivoted(x, A, C, permutation, bias), lowrank_linear(x, A, B, bias))


@pairwise(implementation=GROUPED, dtype=DTYPES, biased=[True, False], rows=[(2, 17), (150,)])
def test_values_and_gradients_in_every_dtype(implementation, dtype, rows, biased, device):
    """Also with so many rows that the CPU multiplies the identity's rows."""
    *tensors, bias = make(rows, 50, 70, 20, dtype, device)
    check(*tensors, bias if biased else None)


@every
@pytest.mark.parametrize(
    ("rows", "n", "m", "rank"),
    [((1,), 1, 1, 1), ((3,), 130, 67, 1), ((65,), 64, 128, 64), ((), 33, 5, 3), ((2, 1, 3), 16, 129, 17)],
)
def test_shapes(implementation, rows, n, m, rank, device):
    check(*make(rows, n, m, rank, device=device))


@pairwise(implementation=GROUPED, rows=[(5,), (140,)], dtype=[torch.float32, torch.bfloat16])
def test_full_rank_leaves_c_without_rows(implementation, rows, dtype, device):
    check(*make(rows, 12, 6, 6, dtype, device))


@dtypes
@pytest.mark.parametrize("implementation", ["torch_expanded"], indirect=True)
@pytest.mark.parametrize(("rows", "m", "rank"), [((2, 17), 70, 20), ((3,), 6, 6), ((0,), 6, 3)])
def test_by_the_whole_second_factor(implementation, dtype, rows, m, rank, device):
    assert "torch_expanded" in dispatch.explain("lowrank_linear_pivoted", torch.zeros(*rows, 12, dtype=dtype), rank)
    check(*make(rows, 12, m, rank, dtype, device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sizes", [((7, 3),), ((70, 20), (6, 6)), ((9, 4), (600, 530), (33, 1), (20, 8))])
def test_whole_second_factors_of_several_layers(dtype, sizes, device):
    """Exactly, whatever the strides; an index that names no row makes one of zeros."""
    expand = pytest.importorskip("sieve_kernels.lowrank.triton_expand").expand
    Cs = [torch.randn(m - r, r, device=device).to(dtype) for m, r in sizes]
    Cs[-1] = Cs[-1].T.contiguous().T
    indices = [torch.randperm(m, device=device).int() for m, _ in sizes]
    wanted = [torch.cat([torch.eye(C.shape[1]).to(C), C])[index] for C, index in zip(Cs, indices, strict=True)]
    assert all(map(torch.equal, expand(Cs, indices), wanted))
    indices[0][:2] = torch.tensor([-1, sizes[0][0]])
    wanted[0][:2] = 0
    assert all(map(torch.equal, expand(Cs, indices), wanted))


def test_where_the_second_factor_is_made_whole():
    """Where multiplying by the identity's rows takes less than moving y: narrow ranks, long inputs."""

    def where(m, r):
        return [T for T in (64, 256, 2048, 16384) if torch_backend_gpu.expands(T, m, r, torch.bfloat16)]

    assert where(4096, 1216) == [16384]
    assert where(1024, 512) == [2048, 16384]
    assert where(4096, 1792) == []
    assert not torch_backend_gpu.expands(16384, 1024, 512, torch.float32)


@every
def test_more_tiles_than_a_group(implementation, device):
    check(*make((9 * 64 + 1,), 5, 140, 70, device=device))


@given(
    rows=st.lists(st.integers(1, 6), max_size=3),
    n=st.integers(1, 60),
    rest=st.integers(0, 50),
    rank=st.integers(1, 20),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_on_cpu(rows, n, rest, rank):
    """In float64, where the rule leaves room for the luck that one or two rounded numbers have."""
    check(*make(rows, n, rest + rank, rank, torch.float64))


@every
def test_no_rows(implementation, device):
    x, A, C, permutation, bias = make((2, 0), 8, 6, 3, device=device)
    leaves = [t.requires_grad_() for t in (x, A, C, bias)]
    y = lowrank_linear_pivoted(x, A, C, permutation, bias)
    assert y.shape == (2, 0, 6)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(t.grad.count_nonzero() == 0 for t in leaves[1:])


WRONG = {
    "below": (lambda p: p.index_fill(0, torch.tensor([2]), -1), "values from -1 to"),
    "just above": (lambda p: p.index_fill(0, torch.tensor([2]), len(p)), "values from 0 to 45"),
    "far above": (lambda p: p.index_fill(0, torch.tensor([2]), 10**7), "to 10000000"),
    "twice": (lambda p: p.index_fill(0, torch.tensor([2, 30]), int(p[5])), "a value twice"),
}


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("wrong", WRONG)
def test_no_permutation(implementation, wrong, rows, dtype):
    """Refused before anything is written; and by the operators that take one without a layer's other checks."""
    x, A, C, permutation, _ = make((rows,), 83, 45, 21, dtype)
    change, words = WRONG[wrong]
    bad = change(permutation)
    with pytest.raises(ValueError, match=rf"permutation \[45\] must hold each of 0 to 44 once, got .*{words}"):
        lowrank_linear_pivoted(x, A, C, bad)
    with pytest.raises(ValueError, match="must hold each of 0 to 44 once"):
        lowrank_mlp(x, (A, C, bad), (A, C, permutation), (torch.ones(3, 45, dtype=dtype),))
    with pytest.raises(ValueError, match="must hold each of 0 to 44 once"):
        torch.ops.sieve_kernels.lowrank_linear_pivoted_backward(x.new_ones(rows, 45), x, A, C, bad, [True] * 3)


def test_a_permutation_is_looked_at_again_when_it_changes():
    x, A, C, permutation, _ = make((1,), 8, 6, 3)
    lowrank_linear_pivoted(x, A, C, permutation)
    permutation[1] = 9
    with pytest.raises(ValueError, match="to 9"):
        lowrank_linear_pivoted(x, A, C, permutation)
    with torch.inference_mode():  # whose tensors count no changes
        order = torch.randperm(6)
        lowrank_linear_pivoted(x, A, C, order)
        order[1] = -3
        with pytest.raises(ValueError, match="from -3"):
            lowrank_linear_pivoted(x, A, C, order)


def test_few_permutations_are_remembered(monkeypatch):
    monkeypatch.setattr(checks, "_MOST_REMEMBERED", 3)
    monkeypatch.setattr(checks, "_permutations", set())
    kept = [torch.randperm(5) for _ in range(10)]
    for permutation in kept:
        checks.check_permutation(permutation)
        assert len(checks._permutations) <= 3


@pytest.mark.skipif(library.library() is None, reason=library.status())
@pytest.mark.parametrize("value", [-1, 45, 10**7])
@pytest.mark.parametrize("rows", [1, 40])
def test_compiled_kernels_look_themselves(rows, value):
    """Also at what was found fit and then changed behind torch's back."""
    from sieve_kernels.lowrank import cpp_backend as compiled

    x, A, C, permutation, _ = make((rows,), 83, 45, 21, torch.bfloat16)
    lowrank_linear_pivoted(x, A, C, permutation)
    permutation.numpy()[3] = value
    if rows <= dispatch.GEMV_ROWS or library.has_amx():
        with pytest.raises(ValueError, match="outside of 0 to m - 1"):
            compiled.pivoted(x, A, C, permutation, None)


def test_gpu_kernel_writes_inside(device):
    """What a GPU's host does not look at: columns outside are left out, and those inside are right."""
    x, A, C, permutation, bias = make((3,), 8, 6, 3, device=device)
    y = lowrank_linear_pivoted(x, A, C, permutation, bias)
    spoilt, left = permutation.clone(), permutation[[1, 4]]
    spoilt[1], spoilt[4] = -1, 10**7
    triton_pivoted = pytest.importorskip("sieve_kernels.lowrank.triton.pivoted")
    found = triton_pivoted.pivoted(x, A, C, spoilt, bias)
    kept = [j for j in range(6) if j not in left.tolist()]
    torch.testing.assert_close(found[:, kept], y[:, kept])
    assert found[:, left].isnan().all()  # never written
