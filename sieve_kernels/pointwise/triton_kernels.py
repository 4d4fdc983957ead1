"""Triton kernels of what lies between the matrices, and their launchers: one launch each.

A call like one before, in shapes, strides, dtypes and alignments, costs the host a look-up and the launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels import tiles
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.dispatch import processors
from sieve_kernels.pointwise.activations import activate

MOST_COLUMNS = 1024
"""Of a row, in a program of `act_mul` or `gather_columns`."""

GROUPED_ROWS = 4
"""Rows that such a program makes where there are many: it reads the indices once for all of them."""


@triton.jit
def named_columns(index_ptr, cols, n, width, INDEXED: tl.constexpr):
    """Where columns `cols` of n come from, out of `width` or (not INDEXED) from their own places, and whether there is
    something: indices come from tensors that the host does not look at."""
    inside = cols < n
    if INDEXED:
        cols = tl.load(index_ptr + cols, mask=inside, other=-1).to(tl.int32)
        inside = (cols >= 0) & (cols < width)
    return cols, inside


@triton.jit
def act_mul_kernel(
    gate_ptr,  # [T, gate_width]
    up_ptr,  # [T, up_width]
    gate_index_ptr,  # [n] if GATE_INDEXED
    up_index_ptr,  # [n] if UP_INDEXED
    out_ptr,  # [T, n]
    T,
    n,
    gate_width,
    up_width,
    stride_gate,
    stride_up,
    stride_out,
    ACTIVATION: tl.constexpr,
    GATE_INDEXED: tl.constexpr,
    UP_INDEXED: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t, j] = act(gate[t, gate_index[j]]) · up[t, up_index[j]]. Grid: (blocks of columns · groups of rows,)."""
    across = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // across * ROWS
    cols = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    gates, gates_inside = named_columns(gate_index_ptr, cols, n, gate_width, GATE_INDEXED)
    ups, ups_inside = named_columns(up_index_ptr, cols, n, up_width, UP_INDEXED)
    for row in range(first, tl.minimum(first + ROWS, T)):
        at = tl.cast(row, tl.int64)
        gate = tl.load(gate_ptr + at * stride_gate + gates, mask=gates_inside, other=0.0)
        up = tl.load(up_ptr + at * stride_up + ups, mask=ups_inside, other=0.0)
        h = activate(gate.to(WIDE), ACTIVATION) * up.to(WIDE)
        tl.store(out_ptr + at * stride_out + cols, h.to(out_ptr.dtype.element_ty), mask=cols < n)


@triton.jit
def gather_columns_kernel(
    x_ptr,  # [T, width]
    index_ptr,  # [n]
    bias_ptr,  # [n] if BIASED
    out_ptr,  # [T, n]
    T,
    n,
    width,
    stride_x,
    BIASED: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t, j] = x[t, index[j]] + bias[j]. Grid: (blocks of columns · groups of rows,)."""
    across = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // across * ROWS
    cols = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    named, inside = named_columns(index_ptr, cols, n, width, True)
    if BIASED:
        bias = tl.load(bias_ptr + cols, mask=cols < n, other=0.0).to(WIDE)
    for row in range(first, tl.minimum(first + ROWS, T)):
        at = tl.cast(row, tl.int64)
        y = tl.load(x_ptr + at * stride_x + named, mask=inside, other=0.0).to(WIDE)
        if BIASED:
            y += bias
        tl.store(out_ptr + at * n + cols, y.to(out_ptr.dtype.element_ty), mask=cols < n)


def act_mul(
    gate: Tensor,
    up: Tensor,
    activation: str,
    gate_index: Tensor | None = None,
    up_index: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """h [T, m], h[t, j] = act(gate[t, gate_index[j]]) · up[t, up_index[j]], rounded once.

    Args:
        gate, up: [T, m], or of any width where an index names columns; halves of one tensor will do.
        activation: "silu", "gelu", "gelu_tanh" or "relu".
        gate_index, up_index: which column of gate and of up each of h is made of, [m] int32 or int64; None: its own.
        out: where to write h, [T, m] with rows in one piece; None: a new tensor.
    """
    return _act_mul(*map(_in_one_piece, (gate, up, gate_index, up_index)), activation, out)


def gather_columns(x: Tensor, index: Tensor, bias: Tensor | None = None) -> Tensor:
    """y [T, m], y[t, j] = x[t, index[j]] + bias[j]; x [T, n], index [m] int32 or int64, bias [m]."""
    return _gather_columns(*map(_in_one_piece, (x, index, bias)))


def _in_one_piece(t: Tensor | None) -> Tensor | None:
    """With rows of contiguous numbers."""
    return t if t is None or t.stride(-1) == 1 else t.contiguous()


def _prepare_act_mul(gate, up, gate_index, up_index, activation, out):
    dtype, device, compute = gate.dtype, gate.device, tiles.compute_dtype(gate.dtype)
    T, n = shape = gate.shape[0], (gate if gate_index is None else gate_index).shape[-1]
    if 0 in shape:
        return lambda *_: torch.empty(shape, dtype=dtype, device=device) if out is None else out
    rows, block, warps = _blocks(T, n, gate_index is not None or up_index is not None, device)
    direct = out is not None and dtype == compute
    launch = Launch(
        act_mul_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, gate.shape[1], up.shape[1], gate.stride(0), up.stride(0), out.stride(0) if direct else n),
        ACTIVATION=activation,
        GATE_INDEXED=gate_index is not None,
        UP_INDEXED=up_index is not None,
        WIDE=tiles.TRITON_DTYPES[tiles.accumulator(dtype)],
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
    )

    def run(gate, up, gate_index, up_index, activation, out):
        h = out if direct else torch.empty(shape, dtype=compute, device=device)
        launch(gate, up, gate_index, up_index, h)
        return h if h.dtype is dtype else h.to(dtype) if out is None else out.copy_(h)

    return run


def _prepare_gather_columns(x, index, bias):
    dtype, device, compute = x.dtype, x.device, tiles.compute_dtype(x.dtype)
    T, n = shape = x.shape[0], index.shape[0]
    if 0 in shape:
        return lambda *_: torch.empty(shape, dtype=dtype, device=device)
    rows, block, warps = _blocks(T, n, True, device)
    launch = Launch(
        gather_columns_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, x.shape[1], x.stride(0)),
        BIASED=bias is not None,
        WIDE=tiles.TRITON_DTYPES[tiles.accumulator(dtype)],
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
    )

    def run(x, index, bias):
        y = torch.empty(shape, dtype=compute, device=device)
        launch(x, index, bias, y)
        return y if y.dtype is dtype else y.to(dtype)

    return run


def _blocks(T: int, n: int, gathered: bool, device: torch.device) -> tuple[int, int, int]:
    """Rows, columns and warps of a program that makes [T, n].

    A thread makes 16 bytes of a row where it loads as many at once; two numbers where it gathers them one by one, so
    that a warp's loads are of neighbours.
    """
    each = 2 if gathered else 8
    block = min(triton.next_power_of_2(n), MOST_COLUMNS // 2 if gathered else MOST_COLUMNS)
    programs = T * triton.cdiv(n, block)
    if programs < processors(device):
        block = max(block // 4, 32)
    rows = GROUPED_ROWS if programs >= 4 * GROUPED_ROWS * processors(device) else 1
    return rows, block, max(1, block // (32 * each))


_act_mul, _gather_columns = Plans(_prepare_act_mul), Plans(_prepare_gather_columns)
