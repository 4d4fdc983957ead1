"""The GEMV kernel: up to three products with the same number of rows in one launch, each by `gemv_product`."""

import triton
import triton.language as tl

from sieve_kernels.lowrank.triton.gemv_product import product_tile


@triton.jit
def member(
    x_ptr,
    w_ptr,
    scale_ptr,
    index_ptr,
    bias_ptr,
    out_ptr,
    copy_ptr,
    tile,
    T,
    K,
    N,
    stride_x,
    stride_w,
    stride_out,
    stride_copy,
    SCATTER: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    WHOLE_VECTORS: tl.constexpr,
    ONE_STEP: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """A tile of one product. SCATTER: 0, to columns 0 … N - 1 of out; 1, to those that the index names; 2, without the
    bias to 0 … N - 1 of out, and with it to those that the index names of copy."""
    # The tile in registers, and its columns of the output.
    cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    y, places, bias = product_tile(
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
        False,
        SCATTER,
        SCALED,
        BIASED,
        EARLY,
        OVERLAP,
        EVEN_K,
        WHOLE_VECTORS,
        ONE_STEP,
        UPCAST,
        ACC,
        BLOCK_T,
        BLOCK_N,
        BLOCK_K,
        SPLIT_K,
        VECTOR,
    )
    # Store it. With two destinations the ordered one comes first, because the next product reads it.
    t = tl.arange(0, BLOCK_T)
    inside = (cols < N)[:, None] & (t < T)[None, :]
    if SCATTER == 2:
        z = y.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + t[None, :].to(tl.int64) * stride_out + cols[:, None], z, mask=inside)
        # Rounded, as the next product reads it.
        y = z.to(ACC)
        out_ptr, stride_out = copy_ptr, stride_copy
    if BIASED:
        y += bias[:, None]
    at = out_ptr + t[None, :].to(tl.int64) * stride_out + places[:, None]
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gemv_kernel(
    x_ptr,  # [T, _]
    w0_ptr,  # of each product [N, K]
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
    out0_ptr,  # [T, _]
    out1_ptr,
    out2_ptr,
    copy0_ptr,  # [T, _]
    copy1_ptr,
    copy2_ptr,
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
    stride_copy0,
    stride_copy1,
    stride_copy2,
    COUNT: tl.constexpr,
    SCATTER: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    WHOLE_VECTORS: tl.constexpr,
    ONE_STEP: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """out_i = x_i w_iᵀ + bias_i of up to three products with the same number of rows, each by `member`.

    Grid: (tiles of all products,).
    """
    # Where the tiles of each product begin.
    pid = tl.program_id(0)
    second = tl.cdiv(N0, BLOCK_N)
    third = second
    if COUNT > 1:
        third += tl.cdiv(N1, BLOCK_N)
    # Compute the tile of its product. Each branch has its own pointers, so that Triton knows their alignment.
    if pid < second:
        member(
            x_ptr + x0_at,
            w0_ptr,
            scale0_ptr,
            index0_ptr,
            bias0_ptr,
            out0_ptr + out0_at,
            copy0_ptr,
            pid,
            T,
            K0,
            N0,
            stride_x,
            stride_w0,
            stride_out0,
            stride_copy0,
            SCATTER,
            SCALED,
            BIASED,
            EARLY,
            OVERLAP,
            EVEN_K,
            WHOLE_VECTORS,
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
                copy1_ptr,
                pid - second,
                T,
                K1,
                N1,
                stride_x,
                stride_w1,
                stride_out1,
                stride_copy1,
                SCATTER,
                SCALED,
                BIASED,
                EARLY,
                OVERLAP,
                EVEN_K,
                WHOLE_VECTORS,
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
                copy2_ptr,
                pid - third,
                T,
                K2,
                N2,
                stride_x,
                stride_w2,
                stride_out2,
                stride_copy2,
                SCATTER,
                SCALED,
                BIASED,
                EARLY,
                OVERLAP,
                EVEN_K,
                WHOLE_VECTORS,
                ONE_STEP,
                UPCAST,
                ACC,
                BLOCK_T,
                BLOCK_N,
                BLOCK_K,
                SPLIT_K,
                VECTOR,
            )
