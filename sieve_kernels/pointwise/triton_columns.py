"""Triton kernels of the epilogues of library products, and their launchers: act · mul, its gradients, and gathered
columns of pivoted pairs. One launch each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.common import tiles
from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.pointwise.activations import activate, slope
from sieve_kernels.pointwise.launches import (
    are_in_one_piece,
    begin,
    column_blocks,
    common_constants,
    fresh_output,
    in_one_piece,
    rows_in_place,
)


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
    ACC: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t, j] = act(gate[t, gate_index[j]]) · up[t, up_index[j]]. Grid: (blocks of columns · groups of rows,)."""
    num_tiles_n = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // num_tiles_n * ROWS
    cols = tl.program_id(0) % num_tiles_n * BLOCK + tl.arange(0, BLOCK)
    if GATE_INDEXED or UP_INDEXED:
        # Two neighbours of each row a thread: a warp loads one of every thread at a time, and they lie in few lines.
        cols = tl.max_contiguous(cols, 2)
    begin(PDL)
    gates, gates_inside = named_columns(gate_index_ptr, cols, n, gate_width, GATE_INDEXED)
    ups, ups_inside = named_columns(up_index_ptr, cols, n, up_width, UP_INDEXED)
    # All rows at once: loads of one row would be too few to hide their latency where columns come one by one.
    rows = first + tl.arange(0, ROWS)[:, None]
    at = rows.to(tl.int64)
    there = rows < T
    gate_at = gate_ptr + at * stride_gate + gates[None, :]
    up_at = up_ptr + at * stride_up + ups[None, :]
    # That neighbours go to one thread must be said of the addresses, too: Triton 3.6 gives a warp 8 columns of 4 rows.
    if GATE_INDEXED:
        gate_at = tl.max_contiguous(gate_at, [1, 2])
    if UP_INDEXED:
        up_at = tl.max_contiguous(up_at, [1, 2])
    gate = tl.load(gate_at, mask=there & gates_inside[None, :], other=0.0)
    up = tl.load(up_at, mask=there & ups_inside[None, :], other=0.0)
    h = activate(gate.to(ACC), ACTIVATION) * up.to(ACC)
    out = out_ptr + at * stride_out + cols[None, :]
    tl.store(out, h.to(out_ptr.dtype.element_ty), mask=there & (cols < n)[None, :])


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
    ACC: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t, j] = x[t, index[j]] + bias[j]. Grid: (blocks of columns · groups of rows,)."""
    num_tiles_n = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // num_tiles_n * ROWS
    cols = tl.program_id(0) % num_tiles_n * BLOCK + tl.arange(0, BLOCK)
    # Two neighbours of each row a thread: a warp loads one of every thread at a time, and they lie in few lines.
    cols = tl.max_contiguous(cols, 2)
    begin(PDL)
    named, inside = named_columns(index_ptr, cols, n, width, True)
    if BIASED:
        bias = tl.load(bias_ptr + cols, mask=cols < n, other=0.0).to(ACC)
    rows = first + tl.arange(0, ROWS)[:, None]
    at = rows.to(tl.int64)
    there = rows < T
    # Said of the addresses, too: Triton 3.6 gives a warp 8 columns of 4 rows.
    source = tl.max_contiguous(x_ptr + at * stride_x + named[None, :], [1, 2])
    y = tl.load(source, mask=there & inside[None, :], other=0.0).to(ACC)
    if BIASED:
        y += bias[None, :]
    tl.store(out_ptr + at * n + cols[None, :], y.to(out_ptr.dtype.element_ty), mask=there & (cols < n)[None, :])


@triton.jit
def join_columns_kernel(
    z_ptr,  # [T, r]
    c_ptr,  # [T, n - r]
    index_ptr,  # [n]
    bias_ptr,  # [n] if BIASED
    out_ptr,  # [T, n]
    T,
    n,
    r,
    stride_z,
    stride_c,
    stride_out,
    BIASED: tl.constexpr,
    ACC: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t, j] = [z, c][t, index[j]] + bias[j]. Grid: (blocks of columns · groups of rows,)."""
    num_tiles_n = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // num_tiles_n * ROWS
    cols = tl.program_id(0) % num_tiles_n * BLOCK + tl.arange(0, BLOCK)
    # Two neighbours of each row a thread: a warp loads one of every thread at a time, and they lie in few lines.
    cols = tl.max_contiguous(cols, 2)
    begin(PDL)
    # Indices come from a tensor that the host does not look at: those outside read nothing.
    named = tl.load(index_ptr + cols, mask=cols < n, other=-1).to(tl.int32)
    of_z = (named >= 0) & (named < r)
    of_c = (named >= r) & (named < n)
    if BIASED:
        bias = tl.load(bias_ptr + cols, mask=cols < n, other=0.0).to(ACC)
    rows = first + tl.arange(0, ROWS)[:, None]
    at = rows.to(tl.int64)
    there = rows < T
    # One load of either: two would each take the time of all.
    source = tl.where(
        of_z[None, :], z_ptr + at * stride_z + named[None, :], c_ptr + at * stride_c + (named - r)[None, :]
    )
    # Said of the addresses, too: Triton 3.6 gives a warp 8 columns of 4 rows.
    source = tl.max_contiguous(source, [1, 2])
    y = tl.load(source, mask=there & (of_z | of_c)[None, :], other=0.0).to(ACC)
    if BIASED:
        y += bias[None, :]
    out = out_ptr + at * stride_out + cols[None, :]
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=there & (cols < n)[None, :])


@triton.jit
def act_mul_backward_kernel(
    grad_ptr,  # [T, n]
    gate_ptr,  # [T, n]
    up_ptr,  # [T, n]
    d_gate_ptr,  # [T, n]
    d_up_ptr,  # [T, n]
    T,
    n,
    stride_grad,
    stride_gate,
    stride_up,
    stride_out,  # common to both
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d_gate = grad · up · act′(gate) and d_up = grad · act(gate). Grid: (blocks of columns · groups of rows,)."""
    num_tiles_n = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // num_tiles_n * ROWS
    cols = tl.program_id(0) % num_tiles_n * BLOCK + tl.arange(0, BLOCK)
    rows = first + tl.arange(0, ROWS)[:, None]
    at = rows.to(tl.int64)
    inside = (rows < T) & (cols < n)[None, :]
    grad = tl.load(grad_ptr + at * stride_grad + cols[None, :], mask=inside, other=0.0).to(ACC)
    gate = tl.load(gate_ptr + at * stride_gate + cols[None, :], mask=inside, other=0.0).to(ACC)
    up = tl.load(up_ptr + at * stride_up + cols[None, :], mask=inside, other=0.0).to(ACC)
    d_gate = grad * up * slope(gate, ACTIVATION)
    d_up = grad * activate(gate, ACTIVATION)
    out = at * stride_out + cols[None, :]
    tl.store(d_gate_ptr + out, d_gate.to(d_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(d_up_ptr + out, d_up.to(d_up_ptr.dtype.element_ty), mask=inside)


def act_mul_backward(grad: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up [T, m], given that of act(gate) · up, grad [T, m]; halves of one tensor will do."""
    return _act_mul_backward(*map(in_one_piece, (grad, gate, up)), activation)


def _prepare_join_columns(z, c, index, bias=None, out=None):
    dtype, device, compute = z.dtype, z.device, tiles.compute_dtype(z.dtype)
    T, n = shape = z.shape[0], index.shape[0]
    if 0 in shape:
        return lambda *_: torch.empty(shape, dtype=dtype, device=device) if out is None else out
    # The kernels need contiguous rows: copy others.
    if not are_in_one_piece(z, c, index, bias):
        return lambda *arguments: join_columns(*map(in_one_piece, arguments[:4]), *arguments[4:])
    # One launch, to `out` where kernels store what hardware stores.
    rows, block, warps = column_blocks(T, n, True, device)
    direct = out is not None and dtype == compute
    launch = Launch(
        join_columns_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, z.shape[1], z.stride(0), c.stride(0), out.stride(0) if direct else n),
        BIASED=bias is not None,
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
        **common_constants(z),
    )

    def run(z, c, index, bias=None, out=None):
        y = out if direct else torch.empty(shape, dtype=compute, device=device)
        launch(z, c, index, bias, y)
        if out is None:
            return y if y.dtype is dtype else y.to(dtype)
        return out if direct else out.copy_(y)

    return run


def _prepare_act_mul_backward(grad, gate, up, activation):
    dtype, device, compute = gate.dtype, gate.device, tiles.compute_dtype(gate.dtype)
    T, n = shape = gate.shape
    if 0 in shape:
        return lambda grad, gate, up, activation: (torch.empty_like(gate), torch.empty_like(up))
    rows, block, warps = column_blocks(T, n, False, device)
    launch = Launch(
        act_mul_backward_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, grad.stride(0), gate.stride(0), up.stride(0), n),
        ACTIVATION=activation,
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
        **common_constants(gate),
    )

    def run(grad, gate, up, activation):
        found = [torch.empty(shape, dtype=compute, device=device) for _ in range(2)]
        launch(grad, gate, up, *found)
        return tuple(found) if compute is dtype else tuple(t.to(dtype) for t in found)

    return run


def _prepare_act_mul(gate, up, activation, gate_index=None, up_index=None, out=None):
    dtype, device, compute = gate.dtype, gate.device, tiles.compute_dtype(gate.dtype)
    shape = (*gate.shape[:-1], (gate if gate_index is None else gate_index).shape[-1])
    if 0 in shape:
        return lambda *_: torch.empty(shape, dtype=dtype, device=device) if out is None else out
    # The kernels need contiguous rows: copy others.
    gates, ups, n = rows_in_place(gate), rows_in_place(up), shape[-1]
    if gates is None or ups is None or not are_in_one_piece(gate_index, up_index):
        return lambda gate, up, activation, *others: act_mul(
            gate.contiguous(), up.contiguous(), activation, *map(in_one_piece, others[:2]), *others[2:]
        )
    # One launch, to `out` where kernels store what hardware stores.
    T, direct = len(gates), out is not None and dtype == compute
    rows, block, warps = column_blocks(T, n, gate_index is not None or up_index is not None, device)
    launch = Launch(
        act_mul_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, gates.shape[1], ups.shape[1], gates.stride(0), ups.stride(0), as_rows(out).stride(0) if direct else n),
        ACTIVATION=activation,
        GATE_INDEXED=gate_index is not None,
        UP_INDEXED=up_index is not None,
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
        **common_constants(gate),
    )
    fresh = fresh_output(gate, shape)

    def run(gate, up, activation, gate_index=None, up_index=None, out=None):
        h = out if direct else fresh(gate)
        launch(gate, up, gate_index, up_index, h)
        if out is None:
            return h if h.dtype is dtype else h.to(dtype)
        return out if direct else out.copy_(h)

    return run


def _prepare_gather_columns(x, index, bias=None):
    dtype, device, compute = x.dtype, x.device, tiles.compute_dtype(x.dtype)
    T, n = shape = x.shape[0], index.shape[0]
    if 0 in shape:
        return lambda *_: torch.empty(shape, dtype=dtype, device=device)
    if rows_in_place(x) is None or not are_in_one_piece(index, bias):
        return lambda *arguments: gather_columns(*map(in_one_piece, arguments))
    rows, block, warps = column_blocks(T, n, True, device)
    launch = Launch(
        gather_columns_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, x.shape[1], x.stride(0)),
        BIASED=bias is not None,
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
        **common_constants(x),
    )

    def run(x, index, bias=None):
        y = torch.empty(shape, dtype=compute, device=device)
        launch(x, index, bias, y)
        return y if y.dtype is dtype else y.to(dtype)

    return run


_act_mul_backward = Plans(_prepare_act_mul_backward)

act_mul = Plans(_prepare_act_mul)
"""h[…, j] = act(gate[…, gate_index[j]]) · up[…, up_index[j]], rounded once, of gate and up [..., m] (halves of one
tensor will do), an activation, and, if given, gate_index and up_index [m] int32 or int64, and `out`, where to write h:
a matrix with rows in one piece, which may be gate or up where nothing is gathered."""

gather_columns = Plans(_prepare_gather_columns)
"""y[t, j] = x[t, index[j]] + bias[j] of x [T, n], index [m] int32 or int64 and, if given, bias [m]."""

join_columns = Plans(_prepare_join_columns)
"""y[t, j] = [z, c][t, index[j]] + bias[j] of z [T, r], c [T, m - r], index [m] int32 or int64 and, if given, bias [m]
and `out`, where to write y: a matrix with rows in one piece."""
