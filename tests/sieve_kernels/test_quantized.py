"""lowrank_linear_quantized and quantize_rows: values against float64, packing, and behaviour inside torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from hypothesis import given, settings
from hypothesis import strategies as st

from sieve_kernels import lowrank_linear_quantized, quantize_rows
from sieve_kernels.lowrank import reference
from sieve_kernels.lowrank.quantize import GROUP, dequantize_rows
from sieve_kernels.lowrank.triton import quantized as quantized_kernels

both = pytest.mark.parametrize("implementation", ["torch", "cpp", "triton", "triton_gemv"], indirect=True)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
widths = pytest.mark.parametrize("bits", [(8, 8), (4, 4), (8, 4)], ids=str)


def make(rows, n, m, rank, bits=(8, 8), dtype=torch.float32, device="cpu"):
    """x [*rows, n], integers and scales of A [rank, n] and B [m, rank], bias [m]."""
    x, A, B, bias = (torch.randn(s, device=device) for s in ((*rows, n), (rank, n), (m, rank), (m,)))
    A_bits, B_bits = bits
    return [
        x.to(dtype), *quantize_rows(A * n**-0.5, A_bits), *quantize_rows(B * rank**-0.5, B_bits), bias.to(dtype)
    ]  # fmt: skip


def dequantized(x, A_q, A_scale, B_q, B_scale, bias=None):
    """What torch computes in x's dtype from factors in this dtype."""
    A, B = dequantize_rows(A_q, A_scale, x.shape[-1], x.dtype), dequantize_rows(B_q, B_scale, len(A_q), x.dtype)
    return F.linear(F.linear(x, A), B, bias)


def exact(x, A_q, A_scale, B_q, B_scale, bias=None):
    return reference.quantized(x.double(), A_q, A_scale, B_q, B_scale, None if bias is None else bias.double())


def check(tensors):
    assert_accurate(lowrank_linear_quantized(*tensors), exact(*tensors), dequantized(*tensors))


@both
@dtypes
@widths
@pytest.mark.parametrize("biased", [True, False])
def test_values_in_every_dtype(implementation, dtype, bits, biased, device):
    *tensors, bias = make((2, 17), 150, 70, 67, bits, dtype, device)
    check([*tensors, bias if biased else None])


@both
@widths
@pytest.mark.parametrize(
    ("rows", "n", "m", "rank"),
    [((1,), 1, 1, 1), ((3,), 130, 67, 1), ((65,), 128, 64, 64), ((), 33, 5, 3), ((2, 0), 8, 6, 3), ((2,), 64, 1, 129)],
)
def test_shapes(implementation, bits, rows, n, m, rank, device):
    check(make(rows, n, m, rank, bits, device=device))


@both
@widths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_rows_take_shares(implementation, bits, dtype, pretend, device):
    pretend(num_sms=132)
    tensors = make((2,), 600, 40, 20, bits, dtype, device)
    check(tensors)
    check([*tensors[:-1], None])
    assert torch.equal(lowrank_linear_quantized(*tensors), lowrank_linear_quantized(*tensors))


@both
@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (8, 4), (4, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "rank", "m"), [(256, 64, 96), (20000, 32, 200), (320, 160, 64), (96, 40, 200)])
def test_one_row_of_whole_words(implementation, bits, dtype, n, rank, m, device):
    """Rows of 32-bit words, which a GPU reads whole; longer rows than it reads at once, and groups cut short."""
    tensors = make((1,), n, m, rank, bits, dtype, device)
    check(tensors)
    check([*tensors[:-1], None])


@both
@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (8, 4), (4, 8)], ids=str)
@pytest.mark.parametrize("rows", [2, 3, 4, 5, 8, 9])
def test_some_rows_of_whole_words(implementation, bits, rows, device):
    """Up to four rows, of 4 bits up to eight, go through one row's kernel, and each factor by its own bits."""
    tensors = make((rows,), 320, 72, 160, bits, torch.bfloat16, device)
    check(tensors)
    wide = torch.zeros(rows, 400, dtype=torch.bfloat16, device=device)
    wide[:, 40:360] = tensors[0]
    check([wide[:, 40:360], *tensors[1:]])
    odd = torch.zeros(rows, 323, dtype=torch.bfloat16, device=device)
    odd[:, :320] = tensors[0]
    check([odd[:, None, :320], *tensors[1:]])


@pytest.mark.parametrize("rows", [1, 16, 17, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_steps_are_as_long_as_four_threads_unpack(dtype, rows):
    """8 numbers of 4 bits each: Triton 3.6 counts those of a shorter step twice, on a GPU only."""
    for aligned in (True, False):
        step = quantized_kernels._blocks(rows, dtype, aligned, packed=True)[2]
        assert step >= 32
        assert GROUP % step == 0


@given(
    rows=st.lists(st.integers(0, 5), max_size=3),
    n=st.integers(1, 150),
    m=st.integers(1, 60),
    rank=st.integers(1, 70),
    bits=st.tuples(st.sampled_from([8, 4]), st.sampled_from([8, 4])),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_on_cpu(rows, n, m, rank, bits):
    """In float64, where the rule leaves room for the luck that one or two rounded numbers have."""
    check(make(rows, n, m, rank, bits, torch.float64))


@given(rows=st.integers(0, 5), columns=st.integers(0, 200), bits=st.sampled_from([8, 4]))
@settings(max_examples=50, deadline=None)
def test_rounding_is_within_half_a_step(rows, columns, bits):
    W = torch.randn(rows, columns) * torch.logspace(-20, 20, max(rows, 1))[:rows, None]
    q, scale = quantize_rows(W, bits)
    assert q.dtype == (torch.int8 if bits == 8 else torch.uint8)
    assert scale.dtype == torch.float32
    steps = scale[:, None] if bits == 8 else scale.repeat_interleave(64, 1)[:, :columns]
    back = dequantize_rows(q, scale, columns, torch.float64)
    assert back.shape == W.shape
    assert ((back - W.double()).abs() <= 0.5001 * steps.double()).all()


def test_packing():
    """Low bits first, offset 8; the half byte beyond an odd number of columns is zero."""
    q, scale = quantize_rows(torch.tensor([[7.0, -7.0, 3.0], [0.0, 0.0, 0.0]]), 4)
    assert q.tolist() == [[15 | 1 << 4, 11 | 8 << 4], [8 | 8 << 4, 8 | 8 << 4]]
    assert scale.tolist() == [[1.0], [1.0]]
    q, scale = quantize_rows(torch.tensor([[254.0, -2.0], [0.0, 0.0]]).bfloat16(), 8)
    assert q.tolist() == [[127, -1], [0, 0]]
    assert scale.tolist() == [2.0, 1.0]


def test_groups_have_their_own_scales():
    W = torch.ones(1, 130)
    W[:, 64:128] = 1e-3
    q, scale = quantize_rows(W, 4)
    assert scale.shape == (1, 3)
    torch.testing.assert_close(dequantize_rows(q, scale, 130, torch.float32), W)


@pytest.mark.parametrize("bits", [8, 4])
def test_nan_in_a_weight_is_not_lost(bits):
    W = torch.randn(3, 64)
    W[1, 5] = torch.nan
    back = dequantize_rows(*quantize_rows(W, bits), 64, torch.float32)
    assert back[1].isnan().all()
    assert back[[0, 2]].isfinite().all()


@both
def test_strided_arguments(implementation, device):
    for bits in ((8, 8), (4, 4)):
        x, *factors, bias = make((30, 4), 140, 24, 70, bits, device=device)
        strided = [torch.stack([t, t], -1)[..., 0] for t in factors]
        check([x.transpose(0, 1), *strided, torch.stack([bias, bias], 1)[:, 0]])


@both
def test_scales_of_any_float(implementation, device):
    x, A_q, A_scale, B_q, B_scale, bias = make((5,), 70, 24, 10, (8, 4), torch.bfloat16, device)
    check([x, A_q, A_scale.bfloat16(), B_q, B_scale.double(), bias])


@both
@widths
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_nan_and_infinity_propagate(implementation, bits, device):
    x, *rest = make((4,), 8, 6, 3, bits, device=device)
    x[1, 2], x[2, 3] = torch.nan, torch.inf
    y = lowrank_linear_quantized(x, *rest)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert y[[0, 3]].isfinite().all()


@both
def test_offsets_beyond_32_bits(implementation):
    """A row 2³¹ numbers away from the first. The memory is never touched, so it costs nothing."""
    _, *rest = make((3,), 16, 6, 3, (8, 4), torch.float16)
    far = torch.from_numpy(np.zeros((1 << 31) + 64, dtype=np.int16)).view(torch.float16)
    x = far.as_strided((3, 16), (1 << 30, 1))
    x.copy_(torch.randn(3, 16))
    assert_accurate(lowrank_linear_quantized(x, *rest), exact(x, *rest), dequantized(x.contiguous(), *rest))


@both
@widths
def test_gradients_of_input_and_bias(implementation, bits, device):
    x, *factors, bias = make((2, 5), 70, 6, 67, bits, device=device)
    leaves = [x.requires_grad_(), bias.requires_grad_()]
    upstream = torch.randn(2, 5, 6, device=device)
    ours, theirs = (
        torch.autograd.grad(f(x, *factors, bias), leaves, upstream) for f in (lowrank_linear_quantized, dequantized)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@widths
def test_opcheck(bits):
    x, *factors, bias = make((2, 5), 70, 6, 3, bits)
    operator = torch.ops.sieve_kernels.lowrank_linear_quantized
    torch.library.opcheck(operator, (x.requires_grad_(), *factors, bias.requires_grad_()))
    torch.library.opcheck(operator, (x, *factors, None))


@widths
def test_compiles_without_graph_breaks(bits):
    def layer(x, *rest):
        return lowrank_linear_quantized(x.relu(), *rest).square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 7):
        x, *rest = make((rows,), 70, 6, 3, bits)
        x.requires_grad_()
        expected, result = layer(x, *rest), compiled(x, *rest)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in (result, expected)))


def test_autocast_as_linear():
    tensors = make((4,), 8, 6, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lowrank_linear_quantized(*tensors)
    assert y.dtype == torch.bfloat16
    narrow = [t.bfloat16() if i in (0, 5) else t for i, t in enumerate(tensors)]
    torch.testing.assert_close(y, lowrank_linear_quantized(*narrow))


@both
@pytest.mark.parametrize(
    ("error", "change", "text"),
    [
        (ValueError, {"x": torch.zeros(4, 9)}, r"\[4, 9\].*A_q \[3, 8\] int8"),
        (ValueError, {"A_q": torch.zeros(3, 8, dtype=torch.uint8)}, r"A_q \[3, 8\] uint8"),
        (ValueError, {"A_scale": torch.zeros(3, 1)}, r"A_scale \[3, 1\]"),
        (ValueError, {"B_q": torch.zeros(6, 4, dtype=torch.int8)}, r"B_q \[6, 4\]"),
        (ValueError, {"bias": torch.zeros(5)}, r"bias \[5\]"),
        (ValueError, {"A_scale": torch.zeros(3, requires_grad=True)}, r"A_scale.*gradient.*\[3\].*inference only"),
        (ValueError, {"B_q": torch.zeros(6, 3, dtype=torch.int8, device="meta")}, "meta"),
        (TypeError, {"A_q": torch.zeros(3, 8)}, r"A_q \[3, 8\] float32"),
        (TypeError, {"B_scale": torch.zeros(6, dtype=torch.int32)}, r"B_scale.*int32"),
        (TypeError, {"bias": torch.zeros(6, dtype=torch.float64)}, r"float32.*float64"),
        (TypeError, {"x": torch.zeros(4, 8, dtype=torch.int32)}, "int32"),
    ],
)
def test_bad_arguments(implementation, error, change, text):
    names = ("x", "A_q", "A_scale", "B_q", "B_scale", "bias")
    with pytest.raises(error, match=text):
        lowrank_linear_quantized(**dict(zip(names, make((4,), 8, 6, 3), strict=True)) | change)


@pytest.mark.parametrize(
    ("error", "W", "bits", "text"),
    [
        (ValueError, torch.zeros(2, 3), 3, "8 or 4, got 3"),
        (ValueError, torch.zeros(3), 8, r"\[3\] float32"),
        (TypeError, torch.zeros(2, 3, dtype=torch.int32), 8, "int32"),
    ],
)
def test_what_cannot_be_quantized(error, W, bits, text):
    with pytest.raises(error, match=text):
        quantize_rows(W, bits)


@pytest.mark.parametrize("implementation", ["torch", "cpp"], indirect=True)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_an_outlier_does_not_drown_the_rest(implementation, rows):
    """A number a thousand times the others, as activations have them, that no weight looks at."""
    x, A_q, A_scale, B_q, B_scale, _ = make((rows,), 300, 67, 41, dtype=torch.bfloat16)
    x[:, 7] *= 1000
    A_q[:, 7] = 0
    check([x, A_q, A_scale, B_q, B_scale, None])


@pytest.mark.parametrize("implementation", ["torch", "cpp"], indirect=True)
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_few_rows_in_16_bits_with_numbers_that_have_no_fixed_point(implementation, rows, value):
    tensors = make((rows,), 300, 67, 41, dtype=torch.bfloat16)
    tensors[0][0] = value
    y, theirs = lowrank_linear_quantized(*tensors), dequantized(*tensors)
    assert torch.equal(y[0].isfinite(), theirs[0].isfinite())
    assert y[1:].isfinite().all()
