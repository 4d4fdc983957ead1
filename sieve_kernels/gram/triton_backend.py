"""Triton kernels of the Gram family and their launchers.

One program per tile of `out` and per part of the tokens. A Gram matrix visits only the tiles on and above the diagonal
and writes each twice, in place and mirrored; a cross-Gram matrix visits all. Where tiles alone would leave most of the
GPU idle, the sum over tokens is split (split-K): parts go to a workspace, and a second launch adds them in a fixed
order, so that results are deterministic.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.autotune.config import (
    ANY,
    UNALIGNED,
    GemmConfig,
    GemmShape,
    TunedKernel,
    fits_shared_memory,
)
from sieve_kernels.common import tiles
from sieve_kernels.core.device import INTERPRETED, num_sms, shared_memory
from sieve_kernels.core.plans import Plans
from sieve_kernels.gram import triton_tma
from sieve_kernels.gram.tiling import SYMMETRIC


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
    parts_ptr,  # [split_k, tiles, BLOCK, BLOCK] in out's dtype if SPLIT_K
    T,
    n,
    m,
    split_size,  # tokens of a part of the sum, a multiple of BLOCK_T
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
    SPLIT_K: tl.constexpr,  # whether the sum is split
    EVEN_T: tl.constexpr,  # T is a multiple of BLOCK_T, and n of BLOCK, …: no masks
    EVEN_N: tl.constexpr,
    EVEN_M: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """out += xᵀ diag(w) y, or this part of it. Grid: (tiles, split_k)."""
    # The tile of the result, and the tokens of this program's part of the sum.
    pid = tl.program_id(0)
    i, j = _tile(pid, tl.cdiv(n, BLOCK), tl.cdiv(m, BLOCK), SYMMETRIC)
    rows = i * BLOCK + tl.arange(0, BLOCK)
    cols = j * BLOCK + tl.arange(0, BLOCK)
    begin = tl.program_id(1).to(tl.int64) * split_size
    end = tl.minimum(begin + split_size, T)
    acc = tl.zeros((BLOCK, BLOCK), dtype=out_ptr.dtype.element_ty)
    for start in range(begin, end, BLOCK_T):
        tokens = start + tl.arange(0, BLOCK_T)
        a = tiles.load_tile(x_ptr, tokens, rows, stride_xt, stride_xn, T, n, EVEN_T, EVEN_N)  # [BLOCK_T, BLOCK]
        b = tiles.load_tile(y_ptr, tokens, cols, stride_yt, stride_ym, T, m, EVEN_T, EVEN_M)  # [BLOCK_T, BLOCK]
        if WEIGHTED or MASKED:
            w = tl.load(weight_ptr + tokens.to(tl.int64) * stride_w, mask=tokens < T, other=0)[:, None]
            # Masked tokens are skipped, not multiplied by zero: they may hold NaN.
            a = tl.where(w != 0, a, 0.0)
            b = tl.where(w != 0, b, 0.0)
            if WEIGHTED:
                # A weighted token no longer fits 16 bits: multiply in float32.
                a = a.to(acc.dtype) * w
                b = b.to(acc.dtype)
        acc = tiles.multiply(tl.trans(a), b, acc, PRECISION, UPCAST)
    # To the workspace, or to the result and its mirror image.
    if SPLIT_K:
        slot = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + pid
        within = tl.arange(0, BLOCK)
        tl.store(parts_ptr + slot * BLOCK * BLOCK + within[:, None] * BLOCK + within[None, :], acc)
    else:
        _accumulate(out_ptr, acc, rows, cols, n, m, stride_on, stride_om, SYMMETRIC)


@triton.jit
def split_k_reduce_kernel(
    parts_ptr,  # [split_k, tiles, BLOCK, BLOCK]
    out_ptr,  # [n, m]
    split_k,
    n,
    m,
    stride_on,
    stride_om,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
    PANEL: tl.constexpr,
):
    """out += the parts of each tile, in order, a panel of its rows each. Grid: (tiles, BLOCK / PANEL)."""
    pid = tl.program_id(0)
    i, j = _tile(pid, tl.cdiv(n, BLOCK), tl.cdiv(m, BLOCK), SYMMETRIC)
    panel = tl.program_id(1) * PANEL + tl.arange(0, PANEL)
    within = tl.arange(0, BLOCK)
    acc = tl.zeros((PANEL, BLOCK), dtype=out_ptr.dtype.element_ty)
    for s in range(0, split_k):
        slot = tl.cast(s, tl.int64) * tl.num_programs(0) + pid
        acc += tl.load(parts_ptr + slot * BLOCK * BLOCK + panel[:, None] * BLOCK + within[None, :])
    _accumulate(out_ptr, acc, i * BLOCK + panel, j * BLOCK + within, n, m, stride_on, stride_om, SYMMETRIC)


def gram_(out: Tensor, x: Tensor, weight: Tensor | None) -> None:
    """out [n, n] += xᵀ diag(w) x; x [T, n], weight [T] bool or in out's dtype. Reads the upper triangle of `out`."""
    _accumulate_(out, x, x, weight, True)


def cross_gram_(out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
    """out [n, m] += xᵀ diag(w) y; x [T, n], y [T, m], weight [T] bool or in out's dtype."""
    _accumulate_(out, x, y, weight, False)


def _prepare(
    out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, symmetric: bool
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], None]:
    """The function that adds to `out`, for arguments of this kind."""
    if x.shape[0] == 0 or out.numel() == 0:
        return lambda *_: None
    add = triton_tma.prepare(out, x, y, weight, symmetric) if triton_tma.can_serve(out, x, weight) else _launch

    def run(out, *others):
        add(out, *others)
        torch.autograd.graph.increment_version(out)  # which torch's own in-place operators do themselves

    return run


_accumulate_ = Plans(_prepare)


def _launch(
    out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, symmetric: bool, config: GemmConfig | None = None
) -> None:
    (T, n), m = x.shape, y.shape[1]
    if weight is not None and weight.dtype == torch.bool and out.dtype == torch.float64:
        weight = weight.to(out.dtype)  # Triton 3.6 compiles no float64 product of operands masked by bytes
    if x.dtype.itemsize == 2 and out.dtype == torch.float64:
        x, y = x.float(), y.float()  # … nor of elements that were loaded as 16 bits
    # What the config depends on.
    masked = weight is not None and weight.dtype == torch.bool
    weighted = weight is not None and not masked
    if config is None:
        aligned = all(stride == 1 or stride % 16 == 0 for t in (x, y, out) for stride in t.stride())
        traits = [SYMMETRIC] * symmetric + [WEIGHTED] * weighted + [MASKED] * masked + [UNALIGNED] * (not aligned)
        traits += [FLOAT64] * (out.dtype == torch.float64)
        shape = GemmShape(n, (m,), (T,), x.dtype, x.device, 8 * x.dtype.itemsize, frozenset(traits))
        config = GRAM.choose(shape)
    # Tiles of the result, the tokens of each part of the sum, and a workspace for parts.
    block, block_t = config.block_m, config.block_k
    count = num_tiles(n, m, block, symmetric)
    split_size = triton.cdiv(triton.cdiv(T, block_t), config.split_k) * block_t
    split_k = triton.cdiv(T, split_size)
    workspace = out.new_empty((split_k, count, block, block)) if split_k > 1 else out
    # Tiles, and the sums of their parts.
    with tiles.on_device(x):
        gram_kernel[(count, split_k)](
            x,
            y,
            weight.view(torch.uint8) if masked else weight,
            out,
            workspace,
            T,
            n,
            m,
            split_size,
            *x.stride(),
            *y.stride(),
            0 if weight is None else weight.stride(0),
            *out.stride(),
            SYMMETRIC=symmetric,
            WEIGHTED=weighted,
            MASKED=masked,
            SPLIT_K=split_k > 1,
            EVEN_T=T % block_t == 0,
            EVEN_N=n % block == 0,
            EVEN_M=m % block == 0,
            PRECISION="ieee" if out.dtype == torch.float64 else tiles.precision(),
            UPCAST=INTERPRETED or out.dtype == torch.float64,
            BLOCK=block,
            BLOCK_T=block_t,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        if split_k > 1:
            panel = 16
            split_k_reduce_kernel[(count, block // panel)](
                workspace, out, split_k, n, m, *out.stride(), SYMMETRIC=symmetric, BLOCK=block, PANEL=panel
            )


def num_tiles(n: int, m: int, block: int, symmetric: bool) -> int:
    """Tiles of a result [n, m], on and above the diagonal if it is symmetric."""
    side = triton.cdiv(n, block)
    return side * (side + 1) // 2 if symmetric else side * triton.cdiv(m, block)


WEIGHTED, MASKED, FLOAT64 = "weighted", "masked", "float64 sums"
"""Traits of a product, beside those of `tiling`."""


def gram_config(shape: GemmShape) -> GemmConfig:
    """Square tiles as large as registers and shared memory allow, and tokens split where these are few."""
    acc_dtype = torch.float64 if FLOAT64 in shape.traits else torch.float32
    weighted, masked, unaligned = (trait in shape.traits for trait in (WEIGHTED, MASKED, UNALIGNED))
    block, block_t = _blocks(shape.dtype, acc_dtype, weighted, masked, not unaligned)
    if not _mirror_fits(block, shape):
        block, block_t = 64, min(block_t, 32)
    count = num_tiles(shape.M, shape.N, block, SYMMETRIC in shape.traits)
    split_k, _ = split(shape.K, count, block_t, num_sms(shape.device))
    return GemmConfig(block, block, block_t, split_k, 8 if block == 128 else 4)


CONFIGS = {
    ANY: (
        GemmConfig(64, 64, 64),
        GemmConfig(64, 64, 64, split_k=2),
        GemmConfig(128, 128, 32, num_warps=8, num_stages=4),
        GemmConfig(128, 128, 64, split_k=2, num_warps=8),
        GemmConfig(128, 128, 64, split_k=4, num_warps=8),
    )
}
"""Configs that are measured in addition to the cost model's."""


def _supports(config: GemmConfig, shape: GemmShape) -> bool:
    """Whether tiles are square, and fit registers where operands pass through registers."""
    in_registers = shape.traits & {WEIGHTED, UNALIGNED, FLOAT64}
    fits = fits_shared_memory(config, shape) and _mirror_fits(config.block_m, shape)
    return fits and config.block_m == config.block_n and not (in_registers and config.block_m > 64)


def _mirror_fits(block: int, shape: GemmShape) -> bool:
    """Whether a tile of accumulators, which is transposed in shared memory for the mirror, fits there."""
    return block * block * (8 if FLOAT64 in shape.traits else 4) <= shared_memory(shape.device)


GRAM = TunedKernel("gram", gram_config, CONFIGS, _supports)


def _blocks(
    dtype: torch.dtype, accumulator: torch.dtype, weighted: bool, masked: bool, aligned: bool
) -> tuple[int, int]:
    """Side of a tile of out, and tokens per step.

    Operands that are converted to the accumulator's dtype or masked in registers leave room for less, and so do rows
    that are not aligned, whose elements are loaded and addressed one by one.
    """
    if accumulator == torch.float64:
        return 64, 16
    if weighted or not aligned:
        return 64, 32
    return 128, 64 // (dtype.itemsize // 2) // (2 if masked else 1)


def split(T: int, count: int, block_t: int, num_sms: int) -> tuple[int, int]:
    """The number of split-K parts of T tokens, and the tokens of each, for `count` tiles on so many multiprocessors.

    Every multiprocessor should have a tile; but each part writes and reads a tile, so it has at least 16 steps of
    block_t tokens.
    """
    steps = triton.cdiv(T, block_t)
    split_k = max(1, min(num_sms // count, steps // 16))
    split_size = triton.cdiv(steps, split_k) * block_t
    return triton.cdiv(T, split_size), split_size
