"""GEMV products, for decoding: few rows times weights that are read once.

With few rows the time of a product is that of reading its weights. Every program reads whole rows of a weight, so that
no sums go across programs: no workspace is needed, and results are deterministic. One row uses CUDA cores; more rows
use tensor cores, and the warps of a program split K.

Launches overlap where the GPU can (programmatic dependent launch): a program first prefetches its weights to L2, which
is coherent, so that no earlier kernel's writes are missed; then it waits for the previous launch, and only then reads.
The second phase of a pair may read its first weights before it waits, because the first phase lets it start only after
all work before the operator is complete.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def prefetch(pointers):
    """Prefetch the cache lines of these addresses to L2; neither changes nor waits for anything."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.uint64, bitcast=True)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def begin(
    w_ptr,
    rows,
    used,
    K,
    stride_w,
    OVERLAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # elements of each row that are prefetched
):
    """Start of a program, before it reads anything that an earlier launch may have written.

    OVERLAP is a sum of 1: start before the previous launch ends, and wait for it here; 2: prefetch the first weights
    before the wait; 4: let the next launch start from here on.
    """
    if OVERLAP & 2:
        LINE: tl.constexpr = 128 // (w_ptr.dtype.element_ty.primitive_bitwidth // 8)
        LINES: tl.constexpr = max(1, BLOCK_K // LINE)
        ks = tl.arange(0, LINES) * LINE
        lines = w_ptr + rows[:, None].to(tl.int64) * stride_w + ks[None, :]
        prefetch(tl.where(used[:, None] & (ks < K)[None, :], lines, w_ptr))
    if OVERLAP & 1:
        gdc_wait()
    if OVERLAP & 4:
        gdc_launch_dependents()


@triton.jit
def small_integer(w, OFFSET: tl.constexpr):
    """Numbers w - OFFSET of unsigned w < 2¹⁶ as float32: the bits of w behind those of 2²³ are 2²³ + w.

    A GPU converts integers at a quarter of its arithmetic rate, which is slower than reading 8-bit weights.
    """
    return (w.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + OFFSET)


@triton.jit
def multiply_add(
    acc,
    w,  # [SPLIT_K, BLOCK_N, BLOCK_K]
    x,  # [SPLIT_K, BLOCK_T, BLOCK_K]
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """acc + w x. Of one row: sums over what one thread holds, [BLOCK_N, BLOCK_K / VECTOR], without exchange between
    threads. Of more: x wᵀ of every part of K, [SPLIT_K, BLOCK_T, BLOCK_N], each by a warp's tensor cores."""
    if BLOCK_T == 1:
        if w.dtype == tl.int8:
            w = small_integer(w.to(tl.uint8, bitcast=True) ^ 128, 128)
        product = tl.reshape(w.to(ACC) * x.to(ACC), (BLOCK_N, BLOCK_K // VECTOR, VECTOR))
        acc += tl.sum(product, 2)
    else:
        if UPCAST:  # for the interpreter, whose 16-bit products are wrong
            x = x.to(ACC)
        acc = tl.dot(x, tl.permute(w.to(x.dtype), (0, 2, 1)), acc, out_dtype=ACC)
    return acc


@triton.jit
def product_tile(
    x_ptr,  # [T, K]
    w_ptr,  # [_, K]
    scale_ptr,  # [_], of the rows of w
    index_ptr,  # [N], if GATHER: which column of [x, x wᵀ] each column is; if SCATTER: where each column of x wᵀ goes
    bias_ptr,  # of where columns go
    cols,  # [BLOCK_N]
    T,
    K,
    N,
    stride_x,  # in units of 16 bytes, so that the compiler knows where rows begin
    stride_w,  # the same
    GATHER: tl.constexpr,
    SCATTER: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    EARLY: tl.constexpr,  # the weights are complete before the wait
    OVERLAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    WHOLE_VECTORS: tl.constexpr,  # K is a multiple of VECTOR
    ONE_STEP: tl.constexpr,  # K is at most SPLIT_K · BLOCK_K
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,  # 1: on CUDA cores
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,  # parts of a step along K, each a warp's
    VECTOR: tl.constexpr,  # elements of a weight that a thread loads at once
):
    """Columns `cols` of x wᵀ, or, if GATHER, of [x, x wᵀ][:, index], [BLOCK_N, BLOCK_T]; where they go and the bias
    there, [BLOCK_N]."""
    # Which rows of the weight make these columns.
    used = cols < N
    if GATHER:
        source = tl.load(index_ptr + cols, mask=used, other=0)
        own = used & (source >= K)
        rows = tl.where(own, source - K, 0)
    else:
        own = used
        rows = cols
    t = tl.arange(0, BLOCK_T)
    ks = tl.arange(0, SPLIT_K)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]  # [SPLIT_K, BLOCK_K]
    # Elements that are loaded at once are inside or outside together, if the compiler is told so.
    begins = ks // VECTOR * VECTOR if WHOLE_VECTORS else ks
    w_rows = w_ptr + rows[None, :, None].to(tl.int64) * (stride_w * VECTOR)
    w_at = w_rows + ks[:, None, :]  # [SPLIT_K, BLOCK_N, BLOCK_K]
    x_at = x_ptr + t[None, :, None].to(tl.int64) * (stride_x * 8) + ks[:, None, :]  # [SPLIT_K, BLOCK_T, BLOCK_K]

    # What may be read before the wait, the wait, and what else has an address already.
    if ONE_STEP and EARLY:
        w = tl.load(w_at, mask=own[None, :, None] & (begins < K)[:, None, :], other=0)
    begin(w_ptr, rows, own, K, stride_w * VECTOR, OVERLAP, BLOCK_N, SPLIT_K * BLOCK_K)
    if SCALED:
        scale = tl.load(scale_ptr + rows, mask=own, other=0.0)
    places = cols
    if SCATTER:
        places = tl.load(index_ptr + cols, mask=used, other=0)
    bias = tl.zeros((BLOCK_N,), dtype=ACC)
    if BIASED:
        bias += tl.load(bias_ptr + places, mask=used, other=0.0).to(ACC)
    if GATHER:
        copied = (used & (source < K))[:, None] & (t < T)[None, :]
        z = tl.load(x_ptr + t[None, :].to(tl.int64) * (stride_x * 8) + source[:, None], mask=copied, other=0.0)

    # The sum over K.
    if BLOCK_T == 1:
        acc = tl.zeros((BLOCK_N, BLOCK_K // VECTOR), dtype=ACC)
    else:
        acc = tl.zeros((SPLIT_K, BLOCK_T, BLOCK_N), dtype=ACC)
    if ONE_STEP:
        inside = (begins < K)[:, None, :]
        if not EARLY:
            w = tl.load(w_at, mask=own[None, :, None] & inside, other=0)
        x = tl.load(x_at, mask=(t < T)[None, :, None] & inside, other=0.0)
        acc = multiply_add(acc, w, x, UPCAST, ACC, BLOCK_T, BLOCK_N, BLOCK_K, VECTOR)
    else:
        for start in range(0, K, SPLIT_K * BLOCK_K):
            if EVEN_K:
                w = tl.load(w_at + start, mask=own[None, :, None], other=0)
                x = tl.load(x_at + start, mask=(t < T)[None, :, None], other=0.0)
            else:
                inside = (start + begins < K)[:, None, :]
                w = tl.load(w_at + start, mask=own[None, :, None] & inside, other=0)
                x = tl.load(x_at + start, mask=(t < T)[None, :, None] & inside, other=0.0)
            acc = multiply_add(acc, w, x, UPCAST, ACC, BLOCK_T, BLOCK_N, BLOCK_K, VECTOR)
    if BLOCK_T == 1:
        y = tl.sum(acc, 1)[:, None]
    else:
        y = tl.trans(tl.sum(acc, 0))

    if SCALED:
        y *= scale.to(ACC)[:, None]
    if GATHER:
        y += z.to(ACC)
    return y, places, bias
