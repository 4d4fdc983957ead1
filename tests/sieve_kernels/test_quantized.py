"""lowrank_linear_quantized and quantize_rows: values against float64, and packing.

`test_operators` has what holds for all operators.
"""

import pytest
import torch
from accuracy import assert_accurate
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import DTYPES, dequantized, quantized_tensors
from pairwise import pairwise

from sieve_kernels import lowrank_linear_quantized, quantize_rows
from sieve_kernels.lowrank import reference
from sieve_kernels.lowrank.quantize import GROUP, dequantize_rows
from sieve_kernels.lowrank.triton import quantized as quantized_kernels

IMPLEMENTATIONS = ("torch", "cpp", "triton", "triton_gemv")
both = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
WIDTHS = ((8, 8), (4, 4), (8, 4))


def make(rows, n, m, rank, bits=(8, 8), dtype=torch.float32, device="cpu"):
    return quantized_tensors(rows, n, m, rank, dtype, device, bits)


def exact(x, A_q, A_scale, B_q, B_scale, bias=None):
    return reference.quantized(x.double(), A_q, A_scale, B_q, B_scale, None if bias is None else bias.double())


def check(tensors):
    assert_accurate(lowrank_linear_quantized(*tensors), exact(*tensors), dequantized(*tensors))


@pairwise(
    implementation=IMPLEMENTATIONS,
    dtype=DTYPES,
    bits=WIDTHS,
    biased=[True, False],
)
def test_values_in_every_dtype(implementation, dtype, bits, biased, device):
    *tensors, bias = make((2, 17), 150, 70, 67, bits, dtype, device)
    check([*tensors, bias if biased else None])


@pairwise(
    implementation=IMPLEMENTATIONS,
    bits=WIDTHS,
    rows_and_n_and_m_and_rank=[
        ((1,), 1, 1, 1),
        ((3,), 130, 67, 1),
        ((65,), 128, 64, 64),
        ((), 33, 5, 3),
        ((2, 0), 8, 6, 3),
        ((2,), 64, 1, 129),
    ],
)
def test_shapes(implementation, bits, rows, n, m, rank, device):
    check(make(rows, n, m, rank, bits, device=device))


@pairwise(implementation=IMPLEMENTATIONS, bits=WIDTHS, dtype=[torch.bfloat16, torch.float32])
def test_few_rows_take_shares(implementation, bits, dtype, pretend, device):
    pretend(num_sms=132)
    tensors = make((2,), 600, 40, 20, bits, dtype, device)
    check(tensors)
    check([*tensors[:-1], None])
    assert torch.equal(lowrank_linear_quantized(*tensors), lowrank_linear_quantized(*tensors))


@pairwise(
    implementation=IMPLEMENTATIONS,
    bits=[*WIDTHS, (4, 8)],
    dtype=[torch.bfloat16, torch.float16],
    n_and_rank_and_m=[(256, 64, 96), (20000, 32, 200), (320, 160, 64), (96, 40, 200)],
)
def test_one_row_of_whole_words(implementation, bits, dtype, n, rank, m, device):
    """Rows of 32-bit words, which a GPU reads whole; longer rows than it reads at once, and groups cut short."""
    tensors = make((1,), n, m, rank, bits, dtype, device)
    check(tensors)
    check([*tensors[:-1], None])


@pairwise(implementation=IMPLEMENTATIONS, bits=[*WIDTHS, (4, 8)], rows=[2, 3, 4, 5, 8, 9])
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
def test_scales_of_any_float(implementation, device):
    x, A_q, A_scale, B_q, B_scale, bias = make((5,), 70, 24, 10, (8, 4), torch.bfloat16, device)
    check([x, A_q, A_scale.bfloat16(), B_q, B_scale.double(), bias])


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
