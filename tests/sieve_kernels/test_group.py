"""lowrank_linear_group: values and gradients against float64, memory, and its behaviour inside torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from gradients import check_gradients, values_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_bytes

from sieve_kernels import lowrank_linear_group
from sieve_kernels.core import dispatch
from sieve_kernels.lowrank import reference, torch_backend

both = pytest.mark.parametrize(
    "implementation", ["torch", "torch_gpu", "torch_training", "cpp", "triton", "triton_gemv"], indirect=True
)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
SIZES = ((70, 20), (33, 7), (1, 1))


def make(rows, n, sizes=SIZES, dtype=torch.float32, device="cpu"):
    """x [*rows, n], then As, Bs and biases for outputs of (m, rank) each."""
    shapes = [(*rows, n), *((r, n) for _, r in sizes), *((m, r) for m, r in sizes), *((m,) for m, _ in sizes)]
    return [(torch.randn(s, device=device) * (s[-1] ** -0.5 if i else 1)).to(dtype) for i, s in enumerate(shapes)]


def split(function):
    """`function` of x, As, Bs, biases as a function of x, *As, *Bs, *biases; None for every bias means no biases."""

    def flat(x, *rest):
        count = len(rest) // 3
        biases = rest[2 * count :]
        return function(x, rest[:count], rest[count : 2 * count], None if biases[0] is None else biases)

    return flat


ours, definition = split(lowrank_linear_group), split(reference.group)


@split
def separate(x, As, Bs, biases):
    """What torch computes in the same dtype."""
    biases = biases or [None] * len(As)
    return [F.linear(F.linear(x, A), B, bias) for A, B, bias in zip(As, Bs, biases, strict=True)]


def check(tensors):
    check_gradients(ours, definition, tensors, separate)


@both
@dtypes
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_in_every_dtype(implementation, dtype, biased, device):
    tensors = make((2, 17), 50, dtype=dtype, device=device)
    check(tensors if biased else [*tensors[:-3], None, None, None])


@both
@pytest.mark.parametrize(
    ("rows", "n", "sizes"),
    [((), 33, ((5, 3),)), ((1,), 1, ((1, 1), (130, 1))), ((65,), 64, ((64, 64), (128, 64))), ((3, 1), 300, SIZES)],
)
def test_shapes(implementation, rows, n, sizes, device):
    check(make(rows, n, sizes, device=device))


@given(
    rows=st.lists(st.integers(0, 5), max_size=3),
    n=st.integers(1, 60),
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=4),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_on_cpu(rows, n, sizes):
    """In float64, where the rule leaves room for the luck that one or two rounded numbers have."""
    check(make(rows, n, sizes, torch.float64))


@both
def test_strided_arguments(implementation, device):
    x, *rest = make((30, 4), 40, device=device)
    strided = [t.T.contiguous().T if t.dim() == 2 else torch.stack([t, t], 1)[:, 0] for t in rest]
    check([x.transpose(0, 1), *strided])


def test_blocks_of_tokens_join(monkeypatch):
    monkeypatch.setenv("SIEVE_KERNELS", "torch")
    monkeypatch.setattr(torch_backend, "BLOCK_ROWS", 10)
    for dtype in (torch.bfloat16, torch.float32):
        check(make((3, 7), 12, dtype=dtype))
        check([*make((21,), 12, dtype=dtype)[:-3], None, None, None])


@both
def test_few_rows_take_shares(implementation, pretend, device):
    pretend(num_sms=132)
    check(make((2,), 600, dtype=torch.bfloat16, device=device))


@both
@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (5,), (0, 6), (2, 7)])
def test_only_gradients_that_are_needed(implementation, wanted, device):
    tensors = make((6,), 9, (*SIZES[:2], (4, 2)), device=device)
    for i in wanted:
        tensors[i].requires_grad_()
    chosen = [tensors[i] for i in wanted]
    mine, theirs = (torch.autograd.grad(sum(y.sum() for y in f(*tensors)), chosen) for f in (ours, separate))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@both
def test_an_output_that_nobody_uses(implementation, device):
    tensors = [t.requires_grad_() for t in make((6,), 9, SIZES[:2], device=device)]
    mine, theirs = (
        torch.autograd.grad(f(*tensors)[1].sum(), tensors, materialize_grads=True) for f in (ours, separate)
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
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "n", "sizes", "pivoted"),
    [
        ((2, 65), 1200, ((72, 40), (136, 24), (200, 136)), False),
        ((2, 65), 1200, ((72, 40), (136, 24), (200, 136)), True),
        ((256,), 136, ((256, 128), (128, 64)), False),
        ((256,), 136, ((256, 128), (128, 64)), True),
        ((500,), 80, SIZES, False),
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
        for y, e, t in zip(ys, exact, separate(x, *As, *Bs, *[None] * count), strict=True):
            assert_accurate(y, e, t)
        return
    orders = [torch.randperm(A.shape[0] + C.shape[0], device=device) for A, C in zip(As, Bs, strict=True)]
    ys = dispatch.implementation("lowrank_linear_group", x, 8)(x, As, Bs, None, orders)
    for y, A, C, order in zip(ys, As, Bs, orders, strict=True):
        exact, torchs = (reference.pivoted(f(x), f(A), f(C), order) for f in (torch.Tensor.double, torch.clone))
        assert_accurate(y, exact, torchs)


def test_gradients_twice():
    tensors = [t.double().requires_grad_() for t in make((2, 2), 4, ((3, 2), (2, 1)))]
    assert torch.autograd.gradcheck(lambda *t: tuple(ours(*t)), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: tuple(ours(*t)), tensors)


@both
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_nan_and_infinity_propagate(implementation, device):
    tensors = make((4,), 8, device=device)
    tensors[0][1, 2], tensors[0][2, 3] = torch.nan, torch.inf
    for y in ours(*tensors):
        assert y[1].isnan().all()
        assert not y[2].isfinite().any()
        assert y[[0, 3]].isfinite().all()


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_input_same_bits(implementation, dtype, device):
    tensors = make((70,), 33, dtype=dtype, device=device)
    upstreams = [torch.ones(70, m, device=device) for m, _ in SIZES]
    for one, other in zip(*(values_and_gradients(ours, tensors, upstreams) for _ in range(2)), strict=True):
        assert torch.equal(one, other)


@both
def test_offsets_beyond_32_bits(implementation):
    """A row 2³¹ numbers away from the first. The memory is never touched, so it costs nothing."""
    _, *rest = make((3,), 16, dtype=torch.float16)
    far = torch.from_numpy(np.zeros((1 << 31) + 64, dtype=np.int16)).view(torch.float16)
    x = far.as_strided((3, 16), (1 << 30, 1))
    x.copy_(torch.randn(3, 16))
    exact = definition(*(t.double() for t in (x, *rest)))
    for y, e, t in zip(ours(x, *rest), exact, separate(x.contiguous(), *rest), strict=True):
        assert_accurate(y, e, t)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_less_memory_than_separate_layers(dtype):
    """Outputs, and the intermediate of one block; separate layers hold an intermediate of all tokens."""
    rows, sizes = 3 * torch_backend.BLOCK_ROWS, ((48, 24), (16, 8), (16, 24))
    tensors = [*make((rows,), 64, sizes, dtype)[:-3], None, None, None]
    outputs, intermediate = rows * sum(m for m, _ in sizes) * dtype.itemsize, 24 * dtype.itemsize
    assert peak_bytes(split(torch_backend.group), *tensors) == outputs + torch_backend.BLOCK_ROWS * intermediate
    assert peak_bytes(separate, *tensors) == outputs + rows * intermediate


def test_opcheck():
    tensors = [t.requires_grad_() for t in make((2, 5), 8, SIZES[:2])]
    x, As, Bs, biases = tensors[0], tensors[1:3], tensors[3:5], tensors[5:]
    operators = torch.ops.sieve_kernels
    torch.library.opcheck(operators.lowrank_linear_group, (x, As, Bs, biases))
    torch.library.opcheck(operators.lowrank_linear_group, (x, As, Bs, []))
    plain = [[t.detach() for t in group] for group in ([x], As, Bs)]
    grads = [torch.randn(2, 5, m) for m, _ in SIZES[:2]]
    for needed in ([True] * 5, [False, False, True, True, False]):
        torch.library.opcheck(operators.lowrank_linear_group_backward, (grads, plain[0][0], plain[1], plain[2], needed))


def test_compiles_without_graph_breaks():
    def layer(*tensors):
        return sum(y.square().sum() for y in ours(tensors[0].relu(), *tensors[1:]))

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 7):
        tensors = [t.requires_grad_() for t in make((rows,), 10)]
        expected = layer(*tensors)
        result = compiled(*tensors)
        torch.testing.assert_close(result, expected)
        pairs = zip(*(torch.autograd.grad(value, tensors) for value in (result, expected)), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other)


def test_autocast_as_linear():
    tensors = [t.requires_grad_() for t in make((4,), 8)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = ours(*tensors)
        for y, e, t in zip(ys, definition(*(t.double() for t in tensors)), separate(*tensors), strict=True):
            assert y.dtype == torch.bfloat16
            assert_accurate(y, e, t)
    sum(y.float().sum() for y in ys).backward()
    assert tensors[1].grad.dtype == torch.float32


@both
@pytest.mark.parametrize(
    ("error", "change", "text"),
    [
        (ValueError, {"As": []}, "0 As, 2 Bs and 2 biases"),
        (ValueError, {"As": [], "Bs": [], "biases": None}, "0 As, 0 Bs and no biases"),
        (ValueError, {"biases": [None]}, "2 As, 2 Bs and 1 biases"),
        (ValueError, {"x": torch.zeros(4, 9)}, r"\[4, 9\].*As\[0\] \[3, 8\].*\[6, 3\]"),
        (ValueError, {"Bs": [torch.zeros(6, 3), torch.zeros(5, 4)]}, r"As\[1\] \[2, 8\].*Bs\[1\] \[5, 4\]"),
        (ValueError, {"biases": [None, torch.zeros(6)]}, r"biases\[1\] \[6\]"),
        (TypeError, {"x": torch.zeros(4, 8, dtype=torch.bfloat16)}, r"bfloat16.*As\[0\].*float32"),
        (TypeError, {"x": torch.zeros(4, 8, dtype=torch.int32)}, "int32"),
    ],
)
def test_bad_arguments(implementation, error, change, text):
    x, A, A2, B, B2, bias, bias2 = make((4,), 8, ((6, 3), (5, 2)))
    with pytest.raises(error, match=text):
        lowrank_linear_group(**{"x": x, "As": [A, A2], "Bs": [B, B2], "biases": [bias, bias2]} | change)
