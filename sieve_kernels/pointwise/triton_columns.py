"""Triton kernels of what training adds to a layer's products: a pivoted pair's columns from both halves of them,
and the gradients of gate and up in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels import tiles
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.pointwise.activations import activate, slope
from sieve_kernels.pointwise.triton_kernels import _blocks, _in_one_piece


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
    BIASED: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t, j] = [z, c][t, index[j]] + bias[j]. Grid: (blocks of columns · groups of rows,)."""
    across = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // across * ROWS
    cols = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    # Indices come from a tensor that the host does not look at: those outside read nothing.
    named = tl.load(index_ptr + cols, mask=cols < n, other=-1).to(tl.int32)
    of_z = (named >= 0) & (named < r)
    of_c = (named >= r) & (named < n)
    if BIASED:
        bias = tl.load(bias_ptr + cols, mask=cols < n, other=0.0).to(WIDE)
    rows = first + tl.arange(0, ROWS)[:, None]
    at = rows.to(tl.int64)
    there = rows < T
    z = tl.load(z_ptr + at * stride_z + named[None, :], mask=there & of_z[None, :], other=0.0)
    c = tl.load(c_ptr + at * stride_c + (named - r)[None, :], mask=there & of_c[None, :], other=0.0)
    y = tl.where(of_z[None, :], z, c).to(WIDE)
    if BIASED:
        y += bias[None, :]
    tl.store(out_ptr + at * n + cols[None, :], y.to(out_ptr.dtype.element_ty), mask=there & (cols < n)[None, :])


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
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d_gate = grad · up · act′(gate) and d_up = grad · act(gate). Grid: (blocks of columns · groups of rows,)."""
    across = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // across * ROWS
    cols = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    rows = first + tl.arange(0, ROWS)[:, None]
    at = rows.to(tl.int64)
    inside = (rows < T) & (cols < n)[None, :]
    grad = tl.load(grad_ptr + at * stride_grad + cols[None, :], mask=inside, other=0.0).to(WIDE)
    gate = tl.load(gate_ptr + at * stride_gate + cols[None, :], mask=inside, other=0.0).to(WIDE)
    up = tl.load(up_ptr + at * stride_up + cols[None, :], mask=inside, other=0.0).to(WIDE)
    d_gate = grad * up * slope(gate, ACTIVATION)
    d_up = grad * activate(gate, ACTIVATION)
    out = at * stride_out + cols[None, :]
    tl.store(d_gate_ptr + out, d_gate.to(d_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(d_up_ptr + out, d_up.to(d_up_ptr.dtype.element_ty), mask=inside)


def join_columns(z: Tensor, c: Tensor, index: Tensor, bias: Tensor | None) -> Tensor:
    """y [T, m], y[t, j] = [z, c][t, index[j]] + bias[j]; z [T, r], c [T, m - r], index [m], bias [m]."""
    return _join_columns(*map(_in_one_piece, (z, c, index, bias)))


def act_mul_backward(grad: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up [T, m], given that of act(gate) · up, grad [T, m]; halves of one tensor will do."""
    return _act_mul_backward(*map(_in_one_piece, (grad, gate, up)), activation)


def _prepare_join_columns(z, c, index, bias):
    dtype, device, compute = z.dtype, z.device, tiles.compute_dtype(z.dtype)
    T, n = shape = z.shape[0], index.shape[0]
    if 0 in shape:
        return lambda *_: torch.empty(shape, dtype=dtype, device=device)
    rows, block, warps = _blocks(T, n, True, device)
    launch = Launch(
        join_columns_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, z.shape[1], z.stride(0), c.stride(0)),
        BIASED=bias is not None,
        WIDE=tiles.TRITON_DTYPES[tiles.accumulator(dtype)],
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
    )

    def run(z, c, index, bias):
        y = torch.empty(shape, dtype=compute, device=device)
        launch(z, c, index, bias, y)
        return y if y.dtype is dtype else y.to(dtype)

    return run


def _prepare_act_mul_backward(grad, gate, up, activation):
    dtype, device, compute = gate.dtype, gate.device, tiles.compute_dtype(gate.dtype)
    T, n = shape = gate.shape
    if 0 in shape:
        return lambda grad, gate, up, activation: (torch.empty_like(gate), torch.empty_like(up))
    rows, block, warps = _blocks(T, n, False, device)
    launch = Launch(
        act_mul_backward_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, grad.stride(0), gate.stride(0), up.stride(0), n),
        ACTIVATION=activation,
        WIDE=tiles.TRITON_DTYPES[tiles.accumulator(dtype)],
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
    )

    def run(grad, gate, up, activation):
        found = [torch.empty(shape, dtype=compute, device=device) for _ in range(2)]
        launch(grad, gate, up, *found)
        return tuple(found) if compute is dtype else tuple(t.to(dtype) for t in found)

    return run


_join_columns, _act_mul_backward = Plans(_prepare_join_columns), Plans(_prepare_act_mul_backward)
