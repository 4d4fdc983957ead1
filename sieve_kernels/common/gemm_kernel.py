"""The kernels of `gemm.py`: the main loop of every matrix product, one or several products in a launch, split-K."""

import triton
import triton.language as tl

from sieve_kernels.common import tiles


@triton.jit
def swizzle_tile(pid, M, num_tiles_n, BLOCK_M: tl.constexpr, GROUP_M: tl.constexpr):
    """Row and column of tile `pid`, with `num_tiles_n` tiles per row.

    Tiles are ordered in groups of GROUP_M rows of tiles, column by column within a group, so that the operand panels
    that programs share are still in L2.
    """
    first = pid // (GROUP_M * num_tiles_n) * GROUP_M
    height = tl.minimum(tl.cdiv(M, BLOCK_M) - first, GROUP_M)
    within = pid % (GROUP_M * num_tiles_n)
    return first + within % height, within // height


@triton.jit
def gemm_mainloop(
    acc,  # [BLOCK_M, BLOCK_N]
    a_ptr,  # [M, K]; [PARTS, M, K] if PARTS > 1; a descriptor of [M, K] if TMA
    b_ptr,  # [N, K]; a descriptor if TMA
    rows,
    cols,
    M,
    N,
    K,
    begin,
    end,
    stride_a,
    stride_b,
    PARTS: tl.constexpr,
    TMA: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """acc + a[rows, begin:end] b[cols, begin:end]ᵀ. An a in PARTS is their sum, rounded to b's dtype."""
    for start in range(begin, end, BLOCK_K):
        if TMA:
            # Descriptors return zeros beyond the edges, so no masks are needed.
            a = a_ptr.load([rows, start])  # [BLOCK_M, BLOCK_K]
            b = b_ptr.load([cols, start])  # [BLOCK_N, BLOCK_K]
        else:
            m = rows + tl.arange(0, BLOCK_M)
            n = cols + tl.arange(0, BLOCK_N)
            k = start + tl.arange(0, BLOCK_K)
            b = tiles.load_tile(b_ptr, n, k, stride_b[0], stride_b[1], N, K, EVEN_N, EVEN_K)  # [BLOCK_N, BLOCK_K]
            a = tiles.load_tile(a_ptr, m, k, stride_a[-2], stride_a[-1], M, K, EVEN_M, EVEN_K)  # [BLOCK_M, BLOCK_K]
            # Split-K parts of an earlier launch are added while they are read.
            for part in tl.static_range(1, PARTS):
                at = a_ptr + tl.cast(part, tl.int64) * stride_a[0]
                a += tiles.load_tile(at, m, k, stride_a[-2], stride_a[-1], M, K, EVEN_M, EVEN_K)
            if PARTS > 1 and not UPCAST:
                a = a.to(b.dtype)
        acc = tiles.multiply(a, tl.trans(b), acc, PRECISION, UPCAST)
    return acc


@triton.jit
def matmul_kernel(
    a_ptrs,  # of every product [M, K] or [parts, M, K]; if TMA the descriptor of the only one
    b_ptrs,  # [N, K]; if TMA a descriptor
    bias_ptrs,  # [N] or None
    out_ptrs,  # [M, N], or [split_k, M, N] if SPLIT_K
    M,
    Ns,
    Ks,
    num_tiles_n,  # tiles in a row of tiles of all products
    split_size,  # elements along K of a part of the sum, a multiple of BLOCK_K
    strides_a,
    strides_b,
    strides_bias,
    strides_out,
    PARTS: tl.constexpr,
    SPLIT_K: tl.constexpr,  # whether the sum is split
    TMA: tl.constexpr,
    BIASED: tl.constexpr,
    EVEN_M: tl.constexpr,  # M is a multiple of BLOCK_M, …: no masks
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """out = a bᵀ + bias of several products with the same number of rows. Grid: (tiles, split_k)."""
    row, col = swizzle_tile(tl.program_id(0), M, num_tiles_n, BLOCK_M, GROUP_M)
    first = 0  # column of tiles where a product begins
    for i in tl.static_range(len(Ns)):
        behind = first + tl.cdiv(Ns[i], BLOCK_N)
        if (first <= col) & (col < behind):
            # If this program's tile belongs to product i, compute its part of the sum over K.
            rows = row * BLOCK_M
            cols = (col - first) * BLOCK_N
            begin = 0
            end = Ks[i]
            if SPLIT_K:
                begin = tl.program_id(1) * split_size
                end = tl.minimum(begin + split_size, Ks[i])
            acc = gemm_mainloop(
                tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC),
                a_ptrs if TMA else a_ptrs[i],
                b_ptrs if TMA else b_ptrs[i],
                rows,
                cols,
                M,
                Ns[i],
                Ks[i],
                begin,
                end,
                strides_a[i],
                strides_b[i],
                PARTS,
                TMA,
                EVEN_M,
                EVEN_N,
                EVEN_K,
                PRECISION,
                UPCAST,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
            # Add the bias, and store the tile to the result or to this part of the workspace.
            rows += tl.arange(0, BLOCK_M)
            cols += tl.arange(0, BLOCK_N)
            if BIASED:
                at = bias_ptrs[i] + cols * strides_bias[i]
                acc += tl.load(at, mask=cols < Ns[i], other=0.0).to(ACC)[None, :]
            out = out_ptrs[i]
            if SPLIT_K:
                out += tl.program_id(1).to(tl.int64) * strides_out[i][0]
            tiles.store_tile(out, acc, rows, cols, strides_out[i][-2], strides_out[i][-1], M, Ns[i])
        first = behind


@triton.jit
def split_k_reduce_kernel(
    parts_ptr,  # [SPLIT_K, M, N], contiguous
    bias_ptr,  # [N]
    out_ptr,  # [M, N]
    size,  # M N
    N,
    stride_bias,
    SPLIT_K: tl.constexpr,  # parts
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = the sum of the parts, in a fixed order, plus bias. Grid: (blocks of out,)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    acc = tl.load(parts_ptr + at, mask=inside, other=0.0)
    for part in tl.static_range(1, SPLIT_K):
        acc += tl.load(parts_ptr + tl.cast(part, tl.int64) * size + at, mask=inside, other=0.0)
    if BIASED:
        acc += tl.load(bias_ptr + at % N * stride_bias, mask=inside, other=0.0).to(acc.dtype)
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def summed_matmul_kernel(
    a_ptrs,  # of every product [M, K]
    b_ptrs,  # [N, K]
    out_ptr,  # [M, N]
    M,
    N,
    Ks,
    strides_a,
    strides_b,
    stride_out,
    EVEN_M: tl.constexpr,  # M is a multiple of BLOCK_M, …: no masks
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """out = Σ a bᵀ over several products, rounded once. Grid: (tiles,)."""
    row, col = swizzle_tile(tl.program_id(0), M, tl.cdiv(N, BLOCK_N), BLOCK_M, GROUP_M)
    # All products add to the same accumulator.
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for i in tl.static_range(len(b_ptrs)):
        acc = gemm_mainloop(
            acc,
            a_ptrs[i],
            b_ptrs[i],
            row * BLOCK_M,
            col * BLOCK_N,
            M,
            N,
            Ks[i],
            0,
            Ks[i],
            strides_a[i],
            strides_b[i],
            1,
            False,
            EVEN_M,
            EVEN_N,
            EVEN_K,
            PRECISION,
            UPCAST,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
    # Round once, at the end.
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles.store_tile(out_ptr, acc, rows, cols, stride_out[0], stride_out[1], M, N)
