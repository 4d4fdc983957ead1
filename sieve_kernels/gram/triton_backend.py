"""Triton kernels of the Gram family and their launchers.

One program per tile of `out` and per share of the tokens. A Gram matrix visits only the tiles on and above the
diagonal and writes each twice, in place and mirrored; a cross-Gram matrix visits all. Where tiles alone would leave
most of the GPU idle, the tokens are split: shares go to a workspace and a second launch adds them in a fixed order,
so that the same input gives the same bits.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.common import tiles
from sieve_kernels.core import dispatch
from sieve_kernels.core.plans import Plans
from sieve_kernels.gram import triton_tma


@triton.jit
def _tile(pid, tiles_n, tiles_m, SYMMETRIC: tl.constexpr):
    """Row and column of the pid-th tile; on and above the diagonal, column by column, if SYMMETRIC."""
    if not SYMMETRIC:
        return pid // tiles_m, pid % tiles_m
    col = ((tl.sqrt(8.0 * pid + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The GPU's square root is approximate: at most one off.
    col = tl.where(col * (col + 1) // 2 > pid, col - 1, col)
    col = tl.where((col + 1) * (col + 2) // 2 <= pid, col + 1, col)
    return pid - col * (col + 1) // 2, col


@triton.jit
def _accumulate(
    out_ptr, tile, rows, cols, n, m, stride_on, stride_om, SYMMETRIC: tl.constexpr
):  # tile [BLOCK, BLOCK] of out [n, m]
    """out[rows, cols] += tile; if SYMMETRIC only where row ≤ col, with a copy at [cols, rows]."""
    r = rows[:, None].to(tl.int64)
    c = cols[None, :].to(tl.int64)
    mask = (r < n) & (c < m)
    if SYMMETRIC:
        mask = mask & (r <= c)
    at = out_ptr + r * stride_on + c * stride_om
    tile += tl.load(at, mask=mask, other=0.0)
    tl.store(at, tile, mask=mask)
    if SYMMETRIC:
        tl.store(out_ptr + c * stride_on + r * stride_om, tile, mask=mask)


@triton.jit
def gram_kernel(
    x_ptr,  # [T, n]
    y_ptr,  # [T, m]; x again if SYMMETRIC
    weight_ptr,  # [T]; uint8 if MASKED
    out_ptr,  # [n, m]
    shares_ptr,  # [shares, tiles, BLOCK, BLOCK] in out's dtype if SPLIT
    T,
    n,
    m,
    share,  # tokens per share, a multiple of BLOCK_T
    stride_xt,
    stride_xn,
    stride_yt,
    stride_ym,
    stride_w,
    stride_on,
    stride_om,
    SYMMETRIC: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MASKED: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN_T: tl.constexpr,  # T is a multiple of BLOCK_T, and n of BLOCK, …: no masks
    EVEN_N: tl.constexpr,
    EVEN_M: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """out += xᵀ diag(w) y, or this share of it. Grid: (tiles, shares)."""
    pid = tl.program_id(0)
    i, j = _tile(pid, tl.cdiv(n, BLOCK), tl.cdiv(m, BLOCK), SYMMETRIC)
    rows = i * BLOCK + tl.arange(0, BLOCK)
    cols = j * BLOCK + tl.arange(0, BLOCK)
    begin = tl.program_id(1).to(tl.int64) * share
    end = tl.minimum(begin + share, T)
    acc = tl.zeros((BLOCK, BLOCK), dtype=out_ptr.dtype.element_ty)
    for start in range(begin, end, BLOCK_T):
        tokens = start + tl.arange(0, BLOCK_T)
        a = tiles.load_tile(x_ptr, tokens, rows, stride_xt, stride_xn, T, n, EVEN_T, EVEN_N)  # [BLOCK_T, BLOCK]
        b = tiles.load_tile(y_ptr, tokens, cols, stride_yt, stride_ym, T, m, EVEN_T, EVEN_M)  # [BLOCK_T, BLOCK]
        if WEIGHTED or MASKED:
            w = tl.load(weight_ptr + tokens.to(tl.int64) * stride_w, mask=tokens < T, other=0)[:, None]
            # Left out, not multiplied by zero: a masked token may hold NaN.
            a = tl.where(w != 0, a, 0.0)
            b = tl.where(w != 0, b, 0.0)
            if WEIGHTED:
                # A weighted token is no longer a 16-bit number: multiply in full.
                a = a.to(acc.dtype) * w
                b = b.to(acc.dtype)
        acc = tiles.multiply(tl.trans(a), b, acc, PRECISION, UPCAST)
    if SPLIT:
        slot = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + pid
        within = tl.arange(0, BLOCK)
        tl.store(shares_ptr + slot * BLOCK * BLOCK + within[:, None] * BLOCK + within[None, :], acc)
    else:
        _accumulate(out_ptr, acc, rows, cols, n, m, stride_on, stride_om, SYMMETRIC)


@triton.jit
def split_k_reduce_kernel(
    shares_ptr,  # [shares, tiles, BLOCK, BLOCK]
    out_ptr,  # [n, m]
    shares,
    n,
    m,
    stride_on,
    stride_om,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIP: tl.constexpr,
):
    """out += the shares of each tile, in order. Grid: (tiles, BLOCK / STRIP)."""
    pid = tl.program_id(0)
    i, j = _tile(pid, tl.cdiv(n, BLOCK), tl.cdiv(m, BLOCK), SYMMETRIC)
    strip = tl.program_id(1) * STRIP + tl.arange(0, STRIP)
    within = tl.arange(0, BLOCK)
    acc = tl.zeros((STRIP, BLOCK), dtype=out_ptr.dtype.element_ty)
    for s in range(0, shares):
        slot = tl.cast(s, tl.int64) * tl.num_programs(0) + pid
        acc += tl.load(shares_ptr + slot * BLOCK * BLOCK + strip[:, None] * BLOCK + within[None, :])
    _accumulate(out_ptr, acc, i * BLOCK + strip, j * BLOCK + within, n, m, stride_on, stride_om, SYMMETRIC)


def gram_(out: Tensor, x: Tensor, weight: Tensor | None) -> None:
    """out [n, n] += xᵀ diag(w) x; x [T, n], weight [T] bool or in out's dtype. Reads the upper triangle of `out`."""
    _accumulate_(out, x, x, weight, True)


def cross_gram_(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
    """out [n, m] += xᵀ diag(w) y; x [T, n], y [T, m], weight [T] bool or in out's dtype."""
    _accumulate_(out, x, y, weight, False)


def _prepare(
    out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, symmetric: bool
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], None]:
    """What adds to `out`, for such arguments."""
    if x.shape[0] == 0 or out.numel() == 0:
        return lambda *_: None
    add = triton_tma.prepare(out, x, y, weight, symmetric) if triton_tma.can_serve(out, x, weight) else _launch

    def run(out, *others):
        add(out, *others)
        torch.autograd.graph.increment_version(out)  # which torch's own in-place operators do themselves

    return run


_accumulate_ = Plans(_prepare)


def _launch(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, symmetric: bool) -> None:
    (T, n), m = x.shape, y.shape[1]
    if weight is not None and weight.dtype == torch.bool and out.dtype == torch.float64:
        weight = weight.to(out.dtype)  # Triton 3.6 compiles no float64 product of operands masked by bytes
    if x.dtype.itemsize == 2 and out.dtype == torch.float64:
        x, y = x.float(), y.float()  # … nor of numbers that were loaded as 16 bits
    masked = weight is not None and weight.dtype == torch.bool
    weighted = weight is not None and not masked
    aligned = all(stride == 1 or stride % 16 == 0 for t in (x, y, out) for stride in t.stride())
    block, block_t = _blocks(x.dtype, out.dtype, weighted, masked, aligned)
    side = triton.cdiv(n, block)
    count = side * (side + 1) // 2 if symmetric else side * triton.cdiv(m, block)
    shares, share = split(T, count, block_t, dispatch.num_sms(x.device))
    workspace = out.new_empty((shares, count, block, block)) if shares > 1 else out
    with tiles.on_device(x):
        gram_kernel[(count, shares)](
            x,
            y,
            weight.view(torch.uint8) if masked else weight,
            out,
            workspace,
            T,
            n,
            m,
            share,
            *x.stride(),
            *y.stride(),
            0 if weight is None else weight.stride(0),
            *out.stride(),
            SYMMETRIC=symmetric,
            WEIGHTED=weighted,
            MASKED=masked,
            SPLIT=shares > 1,
            EVEN_T=T % block_t == 0,
            EVEN_N=n % block == 0,
            EVEN_M=m % block == 0,
            PRECISION="ieee" if out.dtype == torch.float64 else tiles.precision(),
            UPCAST=tiles.INTERPRETED or out.dtype == torch.float64,
            BLOCK=block,
            BLOCK_T=block_t,
            num_warps=8 if block == 128 else 4,
            num_stages=3,
        )
        if shares > 1:
            strip = 16
            split_k_reduce_kernel[(count, block // strip)](
                workspace, out, shares, n, m, *out.stride(), SYMMETRIC=symmetric, BLOCK=block, STRIP=strip
            )


def _blocks(
    dtype: torch.dtype, accumulator: torch.dtype, weighted: bool, masked: bool, aligned: bool
) -> tuple[int, int]:
    """Side of a tile of out, and tokens per step: as large as registers and 64 KiB of shared memory allow.

    Operands that are converted to the accumulator's dtype or masked in registers leave room for less, and so do rows
    that are not aligned, whose numbers are loaded and addressed one by one.
    """
    if accumulator == torch.float64:
        return 64, 16
    if weighted or not aligned:
        return 64, 32
    return 128, 64 // (dtype.itemsize // 2) // (2 if masked else 1)


def split(T: int, count: int, block_t: int, num_sms: int) -> tuple[int, int]:
    """Into how many shares T tokens go, and the tokens of each, for `count` tiles on so many multiprocessors.

    Enough for every processor to have a tile; but a share costs a tile written and read, so it has at least 16 steps
    of block_t tokens to its name.
    """
    steps = triton.cdiv(T, block_t)
    shares = max(1, min(num_sms // count, steps // 16))
    share = triton.cdiv(steps, shares) * block_t
    return triton.cdiv(T, share), share
