"""Common to all Triton kernels: loading and multiplying tiles, and properties of the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.core.device import INTERPRETED, has_tma, is_amd

TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def load_tile(
    ptr, rows, cols, row_stride, col_stride, n_rows, n_cols, EVEN_ROWS: tl.constexpr, EVEN_COLS: tl.constexpr
):
    """Tile [rows, cols] of a strided matrix, 0 outside it; no mask along a side that is a multiple of the tile."""
    # 64-bit offsets: a matrix of 2³¹ elements or more is ordinary for the activations of a long calibration pass.
    at = ptr + rows[:, None].to(tl.int64) * row_stride + cols[None, :].to(tl.int64) * col_stride
    if EVEN_ROWS and EVEN_COLS:
        return tl.load(at)
    if EVEN_COLS:
        return tl.load(at, mask=(rows < n_rows)[:, None], other=0.0)
    if EVEN_ROWS:
        return tl.load(at, mask=(cols < n_cols)[None, :], other=0.0)
    return tl.load(at, mask=(rows < n_rows)[:, None] & (cols < n_cols)[None, :], other=0.0)


@triton.jit
def store_tile(ptr, tile, rows, cols, row_stride, col_stride, n_rows, n_cols):
    """Write a tile to [rows, cols] of a strided matrix, without elements beyond its edge."""
    at = ptr + rows[:, None].to(tl.int64) * row_stride + cols[None, :].to(tl.int64) * col_stride
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=(rows < n_rows)[:, None] & (cols < n_cols)[None, :])


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + a b. UPCAST serves the interpreter, whose 16-bit products are wrong."""
    if UPCAST:
        a = a.to(acc.dtype)
        b = b.to(acc.dtype)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def rounded(v, DTYPE: tl.constexpr, UPCAST: tl.constexpr):
    """v [float32 or float64] rounded to the precision of DTYPE. UPCAST serves the interpreter, which truncates bfloat16
    where hardware rounds."""
    if UPCAST and tl.bfloat16 == DTYPE:
        bits = v.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return tl.where(v == v, bits.to(tl.float32, bitcast=True), v)
    return v.to(DTYPE).to(v.dtype)


def precision() -> str:
    """How fp32 products are formed: three TF32 tensor-core products where they exist (Triton's default is a single,
    10-bit one), else plain fp32."""
    return "ieee" if INTERPRETED or is_amd() else "tf32x3"


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels store results of tensors of `dtype`: its own, but float32 in the interpreter, which
    truncates to 16 bits where hardware rounds; torch rounds afterwards."""
    return torch.float32 if INTERPRETED and dtype.itemsize == 2 else dtype


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products of tensors of `dtype` are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def arithmetic(dtype: torch.dtype) -> dict[str, object]:
    """How a kernel multiplies and accumulates elements of `dtype`: the constants of `multiply`."""
    return {
        "PRECISION": "ieee" if dtype == torch.float64 else precision(),
        "UPCAST": INTERPRETED,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }


def has_descriptor(t: Tensor) -> bool:
    """Whether tiles of a 16-bit matrix can be copied by TMA: rows of contiguous elements, all aligned to 16 bytes."""
    aligned = t.dim() == 2 and t.stride(1) == 1 and t.stride(0) >= t.shape[1] and t.stride(0) * t.itemsize % 16 == 0
    return aligned and t.itemsize == 2 and t.data_ptr() % 16 == 0 and t.numel() > 0 and has_tma(t.device)


@contextmanager
def on_device(tensor: Tensor) -> Iterator[None]:
    """Make the tensor's GPU current, as a Triton launch needs; nothing to do for the interpreter."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        with torch.cuda.device(tensor.device):
            yield
    else:
        yield
