"""GEMV for pairs in 8 and 4 bits on a GPU: two launches that read integers, which are exact in every dtype."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.autotune.config import ANY, GemmConfig, GemmShape, TunedKernel
from sieve_kernels.core.device import has_tma, num_sms
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.lowrank.quantize import GROUP
from sieve_kernels.lowrank.triton.gemv import allocation, columns, rounded, row_stride, rows_of, serves
from sieve_kernels.lowrank.triton.gemv_launch import OVERLAP_GEMV, SECOND, Product, make_launch
from sieve_kernels.lowrank.triton.gemv_product import begin
from sieve_kernels.lowrank.triton.quantized import quantized as of_any_bits


@triton.jit
def integers_gemv_kernel(
    x_ptr,  # [ROWS, K]
    w_ptr,  # [N, K] int8; [N, K / 2] uint8 if BITS is 4, the even column in the low bits
    scale_ptr,  # [N]; [N, ⌈K / COLUMNS⌉] if BITS is 4
    bias_ptr,  # [N]
    out_ptr,  # [ROWS, N]
    N,
    ROW,  # 16 bytes, of which so many make a row of w: Triton looks no deeper for what is aligned
    stride_w,  # likewise
    stride_scale,
    stride_x,  # 16 bytes
    stride_out,
    EXPONENT,  # the bits of 2²³; as a constant they would take an instruction of their own
    BITS: tl.constexpr,
    COLUMNS: tl.constexpr,  # per scale
    BIASED: tl.constexpr,
    EARLY: tl.constexpr,  # weights and scales are complete before the wait
    OVERLAP: tl.constexpr,
    ONE_STEP: tl.constexpr,  # a row is at most BLOCK_W words; of more there is one row of x
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """out = x wᵀ + bias. Grid: (tiles of columns of out,)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    used = rows < N
    w_ptr = w_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    WORDS = ROW * 4
    stride_w = stride_w * 4
    if ONE_STEP and EARLY:
        w, scale = integers(w_ptr, scale_ptr, rows, used, 0, WORDS, stride_w, stride_scale, BITS, COLUMNS, BLOCK_W)
    begin(w_ptr, rows, used, stride_w, EARLY, OVERLAP, BLOCK_N, BLOCK_W)
    bias = tl.zeros((BLOCK_N,), dtype=tl.float32)
    if BIASED:
        bias += tl.load(bias_ptr + rows, mask=used, other=0.0).to(tl.float32)
    if ONE_STEP:
        if not EARLY:
            w, scale = integers(w_ptr, scale_ptr, rows, used, 0, WORDS, stride_w, stride_scale, BITS, COLUMNS, BLOCK_W)
        for t in tl.static_range(ROWS):
            # The loop is unrolled, so work on w alone is done once for all rows of x.
            x_row = x_ptr + tl.cast(t, tl.int64) * stride_x * 8
            y = integers_times(w, scale, x_row, 0, WORDS, EXPONENT, BITS, COLUMNS, BLOCK_N, BLOCK_W) + bias
            at = out_ptr + tl.cast(t, tl.int64) * stride_out + rows
            tl.store(at, y.to(out_ptr.dtype.element_ty), mask=used)
    else:
        y = bias
        for at in range(0, WORDS, BLOCK_W):
            w, scale = integers(w_ptr, scale_ptr, rows, used, at, WORDS, stride_w, stride_scale, BITS, COLUMNS, BLOCK_W)
            y += integers_times(w, scale, x_ptr, at, WORDS, EXPONENT, BITS, COLUMNS, BLOCK_N, BLOCK_W)
        tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), mask=used)


@triton.jit
def integers(
    w_ptr,
    scale_ptr,
    rows,
    used,
    at,
    WORDS,
    stride_w,
    stride_scale,
    BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Words [BLOCK_N, BLOCK_W] of some rows from `at` on, and their scales [BLOCK_N], of 4 bits [BLOCK_N, groups]."""
    words = at + tl.arange(0, BLOCK_W)
    ptrs = w_ptr + rows[:, None].to(tl.int64) * stride_w + words[None, :]
    w = tl.load(ptrs, mask=used[:, None] & (words < WORDS)[None, :], other=0)
    if BITS == 8:
        scale = tl.load(scale_ptr + rows.to(tl.int64) * stride_scale, mask=used, other=0.0)
    else:
        LENGTH: tl.constexpr = COLUMNS // 8  # words
        groups = at // LENGTH + tl.arange(0, BLOCK_W // LENGTH)
        exists = groups < tl.cdiv(WORDS, LENGTH)
        ptrs = scale_ptr + rows[:, None].to(tl.int64) * stride_scale + groups[None, :]
        scale = tl.load(ptrs, mask=used[:, None] & exists[None, :], other=0.0)
    return w, scale.to(tl.float32)


@triton.jit
def integers_times(
    w,
    scale,
    x_ptr,
    at,
    WORDS,
    EXPONENT,
    BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Scaled products [BLOCK_N] of what `integers` read with x.

    Four elements of x are loaded as 64 bits, so that each thread has the elements for its words.
    """
    words = at + tl.arange(0, BLOCK_W)
    fours = x_ptr.to(tl.pointer_type(tl.int64), bitcast=True)
    if BITS == 8:
        x = beside(w, tl.load(fours + words, mask=words < WORDS, other=0))
        # 0x80808080: 128 more, so that no integer has a sign.
        y = tl.sum(four_products(w ^ -0x7F7F7F80, x, EXPONENT, x_ptr.dtype.element_ty, 8), 1) * scale
    else:
        first = beside(w, tl.load(fours + 2 * words, mask=words < WORDS, other=0))
        second = beside(w, tl.load(fours + 2 * words + 1, mask=words < WORDS, other=0))
        acc = four_products(w, first, EXPONENT, x_ptr.dtype.element_ty, 4)
        acc += four_products(w >> 16, second, EXPONENT, x_ptr.dtype.element_ty, 4)
        of_groups = tl.sum(tl.reshape(acc, (BLOCK_N, BLOCK_W * 8 // COLUMNS, COLUMNS // 8)), 2)
        y = tl.sum(of_groups * scale, 1)
    return y


@triton.jit
def beside(w, x):
    """x [BLOCK_W] for every row of w [BLOCK_N, BLOCK_W].

    The zero, which only the assembler sees through, makes Triton hand x to the threads that hold w here, as whole
    words, and not later, element by element.
    """
    return x[None, :] | ((w & 1) >> 1).to(tl.int64)


@triton.jit
def four_products(w, x, EXPONENT, DTYPE: tl.constexpr, BITS: tl.constexpr):
    """Sums of the products of the four lowest integers of each word [BLOCK_N, BLOCK_W] with the four of x."""
    acc = one_product(w, x, EXPONENT, DTYPE, BITS, 0)
    for i in tl.static_range(1, 4):
        acc += one_product(w, x, EXPONENT, DTYPE, BITS, i)
    return acc


@triton.jit
def one_product(w, x, EXPONENT, DTYPE: tl.constexpr, BITS: tl.constexpr, AT: tl.constexpr):
    """Products of the AT-th integer of each word [BLOCK_N, BLOCK_W], 2^(BITS - 1) too large, and the AT-th of each x.

    The bits stay where they are, behind those of 2²³: as float32 they are 2²³ plus the integer times a power of two, by
    which x is divided. A GPU converts integers at a quarter of the rate of arithmetic, slower than it reads them.
    """
    PLACE: tl.constexpr = AT * BITS % 16
    if AT * BITS >= 16:
        w = w >> 16
    bits = (w & (((1 << BITS) - 1) << PLACE)) | EXPONENT
    value = bits.to(tl.float32, bitcast=True) - (8388608.0 + (1 << (BITS - 1 + PLACE)))
    if tl.bfloat16 == DTYPE:  # whose bits are the upper ones of float32
        of_x = ((x >> (16 * AT)).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        of_x = (x >> (16 * AT)).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
    return value * (of_x * (1.0 / (1 << PLACE)))


MOST_ROWS = {8: 4, 4: 8}
"""By bits, the most rows of which CUDA cores are faster than the tensor cores' kernels, which read bytes."""


def _prepare_quantized(
    x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None
) -> Callable:
    (T, n), r, m, dtype = rows_of(x), A_q.shape[0], B_q.shape[0], x.dtype
    _, width = columns([r])
    if not serves(x, A_q, B_q):
        return of_any_bits
    first = _product(T, n, row_stride(x), width, A_q, A_scale, dtype, biased=False, early=False)
    second = _product(T, r, width, m, B_q, B_scale, dtype, biased=bias is not None, early=True)
    if first is None or second is None:
        return of_any_bits
    make_z, make_y = allocation((T, width), dtype, x.device), allocation((*x.shape[:-1], m), dtype, x.device)

    def run(x, A_q, A_scale, B_q, B_scale, bias):
        z, y = make_z(), make_y()
        first(x, A_q, A_scale, z)
        second(rounded(z, dtype), B_q, B_scale, *(() if bias is None else (bias,)), y)
        return rounded(y, dtype)

    return run


def _product(
    T: int,
    K: int,
    stride_x: int,
    stride_out: int,
    q: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    biased: bool,
    early: bool,
) -> Launch | None:
    """The launch of T rows of K elements and a factor, None if no kernel here takes them.

    It takes x, integers, scales, the bias if there is one, and the output.
    """
    (N, size), bits = q.shape, 8 if q.dtype == torch.int8 else 4
    aligned = size % 16 == 0 and size * 8 == K * bits and (T == 1 or stride_x % 8 == 0)
    if MOST_ROWS[bits] >= T and aligned:
        traits = frozenset((SECOND,)) if early else frozenset()
        config = INTEGERS_GEMV.choose(GemmShape(T, (N,), (K,), dtype, q.device, bits, traits))
        if T == 1 or config.block_k >= K:
            return _gemv(T, stride_x, stride_out, q, scale, biased, early, config)
    if bits == 4:
        return None
    product = Product(N, K, q.stride(0), stride_out)
    return make_launch(T, stride_x, [product], q.device, dtype, early, bits=8, scaled=True, biased=biased)


def _gemv(
    T: int,
    stride_x: int,
    stride_out: int,
    q: Tensor,
    scale: Tensor,
    biased: bool,
    early: bool,
    config: GemmConfig,
) -> Launch:
    (N, size), bits = q.shape, 8 if q.dtype == torch.int8 else 4
    block_w = config.block_k * bits // 32
    overlap = OVERLAP_GEMV if has_tma(q.device) else 0
    return Launch(
        integers_gemv_kernel,
        (triton.cdiv(N, config.block_n),),
        (N, size // 16, q.stride(0) // 16, scale.stride(0), stride_x // 8, stride_out, 0x4B000000),
        tensors=["x_ptr", "w_ptr", "scale_ptr", *(["bias_ptr"] if biased else []), "out_ptr"],
        BITS=bits,
        COLUMNS=GROUP,
        BIASED=biased,
        EARLY=early,
        OVERLAP=overlap,
        ONE_STEP=size // 4 <= block_w,
        ROWS=T,
        BLOCK_N=config.block_n,
        BLOCK_W=block_w,
        num_warps=config.num_warps,
        **({"launch_pdl": True} if overlap else {}),
    )


def integers_config(shape: GemmShape) -> GemmConfig:
    """Rows of a factor that a program reads, and integers of each in a step.

    Rows are read whole, and so many of them that a thread asks for 64 bytes at once, but not so many that
    multiprocessors have no program. Measured on an H100 at one row of x.
    """
    block_w = min(4096, max(64, triton.next_power_of_2(shape.K * shape.bits // 32)))
    num_warps = 8 if block_w > 1024 else 4
    block_n = min(16, max(1, num_warps * 512 // block_w))
    while block_n > 1 and triton.cdiv(shape.N, block_n) < num_sms(shape.device):
        block_n //= 2
    return GemmConfig(1, block_n, block_w * 32 // shape.bits, num_warps=num_warps)


CONFIGS = {
    ANY: (
        GemmConfig(1, 1, 4096),
        GemmConfig(1, 2, 4096),
        GemmConfig(1, 4, 4096),
        GemmConfig(1, 1, 4096, num_warps=2),
        GemmConfig(1, 2, 4096, num_warps=2),
        GemmConfig(1, 4, 1024),
        GemmConfig(1, 8, 1024),
        GemmConfig(1, 4, 2048),
        GemmConfig(1, 8, 2048),
        GemmConfig(1, 1, 16384, num_warps=8),
    )
}
"""What is measured beside the cost model's config."""


def _supports(config: GemmConfig, shape: GemmShape) -> bool:
    """Whether a thread holds 64 words at most, a step is of whole groups, and of many rows there is one step."""
    words = config.block_k * shape.bits // 32
    fits = config.block_n * words <= config.num_warps * 32 * 64 and words >= 64
    return fits and (shape.M == 1 or config.block_k >= shape.K or shape.K * shape.bits // 32 > 4096)


INTEGERS_GEMV = TunedKernel("integers_gemv", integers_config, CONFIGS, _supports)

quantized = Plans(_prepare_quantized)
"""y [..., m] of x [..., n], factors of [r, n] and [m, r] with scales as `quantize_rows` makes them, and bias [m] or
None."""
