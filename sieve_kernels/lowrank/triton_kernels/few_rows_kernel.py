"""Products of a few rows with weights that are read once: the kernels of decoding.

With a few rows a product costs what its weights cost to read. Every program owns some rows of a
weight and reads them whole, so that nothing is summed across programs: no workspace, and the same bits every time.
One row takes CUDA cores; more take tensor cores, for which the warps of a program share K.

Launches overlap where the GPU can (programmatic dependent launch): a program first asks for its weights to come to L2,
which is coherent, so that no earlier kernel's writes can be missed; then it waits for the launch before it, and only
then reads. The second phase of a pair reads its first weights before it waits: the first phase lets it begin only
after having waited for all that came before the operator.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def prefetch(pointers):
    """Ask for the lines that hold these addresses to come to L2: changes nothing and waits for nothing."""
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
    stride_w,
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What a program does before it reads anything that an earlier launch may have written.

    OVERLAP: the sum of 1, to be launched before the launch before is through, and wait for it; 2, to ask for the first
    weights before; 4, to let the next launch begin from here on.
    """
    if OVERLAP & 2 and not EARLY:
        LINE: tl.constexpr = 128 // (w_ptr.dtype.element_ty.primitive_bitwidth // 8)
        LINES: tl.constexpr = max(1, BLOCK_K // LINE)
        lines = w_ptr + rows[:, None].to(tl.int64) * stride_w + (tl.arange(0, LINES) * LINE)[None, :]
        prefetch(tl.where(used[:, None], lines, w_ptr))
    if OVERLAP & 1:
        gdc_wait()
    if OVERLAP & 4:
        gdc_launch_dependents()


@triton.jit
def small_integer(w, OFFSET: tl.constexpr):
    """Numbers w - OFFSET of unsigned w < 2¹⁶ as float32: the bits of w behind those of 2²³ are 2²³ + w.

    A GPU converts integers at a quarter of the rate of arithmetic, which is slower than to read weights of 8 bits.
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
    index_ptr,  # [N]: which column of [x, x wᵀ] each column is; None: of x wᵀ, in order
    bias_ptr,  # [N]
    cols,  # [BLOCK_N]
    T,
    K,
    N,
    stride_x,
    stride_w,
    GATHER: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    EARLY: tl.constexpr,  # the weights are complete before the wait
    OVERLAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    ONE_STEP: tl.constexpr,  # K is at most SPLIT_K · BLOCK_K
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,  # 1: on CUDA cores
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,  # parts of a step along K, each a warp's
    VECTOR: tl.constexpr,  # elements of a weight that a thread loads at once
):
    """[BLOCK_N, BLOCK_T]: columns `cols` of x wᵀ + bias; with an index, of [x, x wᵀ][:, index] + bias."""
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
    w_at = w_ptr + rows[None, :, None].to(tl.int64) * stride_w + ks[:, None, :]  # [SPLIT_K, BLOCK_N, BLOCK_K]
    x_at = x_ptr + t[None, :, None].to(tl.int64) * stride_x + ks[:, None, :]  # [SPLIT_K, BLOCK_T, BLOCK_K]

    # What may be read before the wait, the wait, and what else has an address already.
    if ONE_STEP and EARLY:
        w = tl.load(w_at, mask=own[None, :, None] & (ks < K)[:, None, :], other=0)
    begin(w_ptr, rows, own, stride_w, EARLY, OVERLAP, BLOCK_N, SPLIT_K * BLOCK_K)
    if SCALED:
        scale = tl.load(scale_ptr + rows, mask=own, other=0.0)
    if BIASED:
        bias = tl.load(bias_ptr + cols, mask=used, other=0.0)
    if GATHER:
        copied = (used & (source < K))[:, None] & (t < T)[None, :]
        z = tl.load(x_ptr + t[None, :].to(tl.int64) * stride_x + source[:, None], mask=copied, other=0.0)

    # The sum over K.
    if BLOCK_T == 1:
        acc = tl.zeros((BLOCK_N, BLOCK_K // VECTOR), dtype=ACC)
    else:
        acc = tl.zeros((SPLIT_K, BLOCK_T, BLOCK_N), dtype=ACC)
    if ONE_STEP:
        inside = (ks < K)[:, None, :]
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
                inside = (start + ks < K)[:, None, :]
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
    if BIASED:
        y += bias.to(ACC)[:, None]
    return y


@triton.jit
def member(
    x_ptr,
    w_ptr,
    scale_ptr,
    index_ptr,
    bias_ptr,
    out_ptr,
    tile,
    T,
    K,
    N,
    stride_x,
    stride_w,
    stride_out,
    GATHER: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    ONE_STEP: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """A tile of one product to out [T, N]."""
    cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    y = product_tile(
        x_ptr,
        w_ptr,
        scale_ptr,
        index_ptr,
        bias_ptr,
        cols,
        T,
        K,
        N,
        stride_x,
        stride_w,
        GATHER,
        SCALED,
        BIASED,
        EARLY,
        OVERLAP,
        EVEN_K,
        ONE_STEP,
        UPCAST,
        ACC,
        BLOCK_T,
        BLOCK_N,
        BLOCK_K,
        SPLIT_K,
        VECTOR,
    )
    t = tl.arange(0, BLOCK_T)
    at = out_ptr + t[None, :].to(tl.int64) * stride_out + cols[:, None]
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=(cols < N)[:, None] & (t < T)[None, :])


@triton.jit
def few_rows_kernel(
    x_ptr,  # [T, _]
    w0_ptr,  # of each product [N, K], or [N - K, K] if GATHER
    w1_ptr,
    w2_ptr,
    scale0_ptr,
    scale1_ptr,
    scale2_ptr,
    index0_ptr,
    index1_ptr,
    index2_ptr,
    bias0_ptr,
    bias1_ptr,
    bias2_ptr,
    out0_ptr,  # [T, N]
    out1_ptr,
    out2_ptr,
    T,
    stride_x,
    K0,
    K1,
    K2,
    N0,
    N1,
    N2,
    x0_at,  # the column of x where the product's input begins, a multiple of 16
    x1_at,
    x2_at,
    out0_at,  # the column of out where the product goes, a multiple of 16
    out1_at,
    out2_at,
    stride_w0,
    stride_w1,
    stride_w2,
    stride_out0,
    stride_out1,
    stride_out2,
    COUNT: tl.constexpr,
    GATHER: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    ONE_STEP: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """out_i = x_i w_iᵀ + bias_i of up to three products with as many rows. Grid: (tiles of all outputs,)."""
    pid = tl.program_id(0)
    second = tl.cdiv(N0, BLOCK_N)
    third = second
    if COUNT > 1:
        third += tl.cdiv(N1, BLOCK_N)
    # Each branch has its own pointers, of which Triton knows the alignment.
    if pid < second:
        member(
            x_ptr + x0_at,
            w0_ptr,
            scale0_ptr,
            index0_ptr,
            bias0_ptr,
            out0_ptr + out0_at,
            pid,
            T,
            K0,
            N0,
            stride_x,
            stride_w0,
            stride_out0,
            GATHER,
            SCALED,
            BIASED,
            EARLY,
            OVERLAP,
            EVEN_K,
            ONE_STEP,
            UPCAST,
            ACC,
            BLOCK_T,
            BLOCK_N,
            BLOCK_K,
            SPLIT_K,
            VECTOR,
        )
    if COUNT > 1:  # noqa: SIM102 (known when compiling)
        if (pid >= second) & (pid < third):
            member(
                x_ptr + x1_at,
                w1_ptr,
                scale1_ptr,
                index1_ptr,
                bias1_ptr,
                out1_ptr + out1_at,
                pid - second,
                T,
                K1,
                N1,
                stride_x,
                stride_w1,
                stride_out1,
                GATHER,
                SCALED,
                BIASED,
                EARLY,
                OVERLAP,
                EVEN_K,
                ONE_STEP,
                UPCAST,
                ACC,
                BLOCK_T,
                BLOCK_N,
                BLOCK_K,
                SPLIT_K,
                VECTOR,
            )
    if COUNT > 2:  # noqa: SIM102
        if pid >= third:
            member(
                x_ptr + x2_at,
                w2_ptr,
                scale2_ptr,
                index2_ptr,
                bias2_ptr,
                out2_ptr + out2_at,
                pid - third,
                T,
                K2,
                N2,
                stride_x,
                stride_w2,
                stride_out2,
                GATHER,
                SCALED,
                BIASED,
                EARLY,
                OVERLAP,
                EVEN_K,
                ONE_STEP,
                UPCAST,
                ACC,
                BLOCK_T,
                BLOCK_N,
                BLOCK_K,
                SPLIT_K,
                VECTOR,
            )
