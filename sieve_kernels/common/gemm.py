"""The matrix product that everything here is made of, for one or several right-hand sides in one launch.

Operands have any strides: with strides exchanged the same kernel serves the products of the backward pass. Where the
tiles of the result are too few to fill the GPU, the sum is split into shares: each program writes its share of a tile
to a workspace, and whoever reads the result next adds the shares in their order. So the same input gives the same bits.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sieve_kernels.common import tiles
from sieve_kernels.core import dispatch

MAX_SPLIT_K = 4
"""Every reader of the result reads as many numbers in the place of one."""

MIN_STEPS = 4
"""Steps along K that a share must have: fewer would not fill the pipeline of loads."""


@triton.jit
def swizzle_tile(pid, M, num_tiles_n, BLOCK_M: tl.constexpr, GROUP_M: tl.constexpr):
    """Row and column of the pid-th of the tiles, `num_tiles_n` in a row.

    They are taken in groups of GROUP_M rows of tiles, column by column, so that the panels of both operands that
    programs share are still in L2.
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
    """acc + a[rows, begin:end] b[cols, begin:end]ᵀ, where an a in PARTS is the sum of them, rounded to b's dtype."""
    for start in range(begin, end, BLOCK_K):
        if TMA:  # zero beyond the edges
            a = a_ptr.load([rows, start])  # [BLOCK_M, BLOCK_K]
            b = b_ptr.load([cols, start])  # [BLOCK_N, BLOCK_K]
        else:
            m = rows + tl.arange(0, BLOCK_M)
            n = cols + tl.arange(0, BLOCK_N)
            k = start + tl.arange(0, BLOCK_K)
            b = tiles.load_tile(b_ptr, n, k, stride_b[0], stride_b[1], N, K, EVEN_N, EVEN_K)  # [BLOCK_N, BLOCK_K]
            a = tiles.load_tile(a_ptr, m, k, stride_a[-2], stride_a[-1], M, K, EVEN_M, EVEN_K)  # [BLOCK_M, BLOCK_K]
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
    out_ptrs,  # [M, N], or [shares, M, N]
    M,
    Ns,
    Ks,
    num_tiles_n,  # tiles in a row of tiles of all products
    share,  # numbers along K per share, a multiple of BLOCK_K
    strides_a,
    strides_b,
    strides_bias,
    strides_out,
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
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
    """out = a bᵀ + bias of several products with as many rows, side by side. Grid: (tiles, shares)."""
    row, col = swizzle_tile(tl.program_id(0), M, num_tiles_n, BLOCK_M, GROUP_M)
    first = 0  # column of tiles where a product begins
    for i in tl.static_range(len(Ns)):
        behind = first + tl.cdiv(Ns[i], BLOCK_N)
        if (first <= col) & (col < behind):
            rows = row * BLOCK_M
            cols = (col - first) * BLOCK_N
            begin = 0
            end = Ks[i]
            if SPLIT:
                begin = tl.program_id(1) * share
                end = tl.minimum(begin + share, Ks[i])
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
            rows += tl.arange(0, BLOCK_M)
            cols += tl.arange(0, BLOCK_N)
            if BIASED:
                at = bias_ptrs[i] + cols * strides_bias[i]
                acc += tl.load(at, mask=cols < Ns[i], other=0.0).to(ACC)[None, :]
            out = out_ptrs[i]
            if SPLIT:
                out += tl.program_id(1).to(tl.int64) * strides_out[i][0]
            tiles.store_tile(out, acc, rows, cols, strides_out[i][-2], strides_out[i][-1], M, Ns[i])
        first = behind


@triton.jit
def split_k_reduce_kernel(
    shares_ptr,  # [SHARES, M, N], contiguous
    bias_ptr,  # [N]
    out_ptr,  # [M, N]
    size,  # M N
    N,
    stride_bias,
    SHARES: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = the sum of the shares in their order, plus bias. Grid: (blocks of out,)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    acc = tl.load(shares_ptr + at, mask=inside, other=0.0)
    for share in tl.static_range(1, SHARES):
        acc += tl.load(shares_ptr + tl.cast(share, tl.int64) * size + at, mask=inside, other=0.0)
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
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles.store_tile(out_ptr, acc, rows, cols, stride_out[0], stride_out[1], M, N)


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K] times b [N, K] transposed, plus bias [N]; any strides, accumulated in float32 (float64 for float64)."""
    return grouped_gemm([a], [b], None if bias is None else [bias])[0]


def grouped_gemm(
    a: Sequence[Tensor], b: Sequence[Tensor], bias: Sequence[Tensor] | None = None, shares: int = 1
) -> list[Tensor]:
    """Several products a [M, K] · b [N, K] transposed, plus bias [N], in one launch; M is common, N and K may differ.

    An a may also come in shares [parts, M, K], as this function returns: then all have as many.
    With shares > 1 the result is [shares, M, N] in the accumulator's dtype, whose sum over shares is the product.
    """
    dtype, device, M = b[0].dtype, b[0].device, a[0].shape[-2]
    parts = a[0].shape[0] if a[0].dim() == 3 else 1
    Ns, Ks = tuple(t.shape[0] for t in b), tuple(t.shape[1] for t in b)
    if shares > 1:
        out = [torch.empty((shares, M, N), dtype=tiles.accumulator(dtype), device=device) for N in Ns]
    else:
        out = [torch.empty((M, N), dtype=tiles.compute_dtype(dtype), device=device) for N in Ns]
    # Some versions of Triton cannot launch with descriptors inside of a tuple: only a single product has them.
    tma = len(b) == 1 and tiles.has_descriptor(a[0]) and tiles.has_descriptor(b[0])
    block_m, block_n, block_k = blocks(M, max(Ns), dtype, tma or is_vectorizable(*a, *b))
    num_tiles_n = sum(triton.cdiv(N, block_n) for N in Ns)
    tma = tma and block_m >= 64
    if M > 0 and num_tiles_n > 0:
        with tiles.on_device(b[0]):
            matmul_kernel[(triton.cdiv(M, block_m) * num_tiles_n, shares)](
                TensorDescriptor.from_tensor(a[0], [block_m, block_k]) if tma else tuple(a),
                TensorDescriptor.from_tensor(b[0], [block_n, block_k]) if tma else tuple(b),
                (None,) * len(b) if bias is None else tuple(bias),
                tuple(out),
                M,
                Ns,
                Ks,
                num_tiles_n,
                triton.cdiv(max(Ks), shares * block_k) * block_k,
                tuple(t.stride() for t in a),
                tuple(t.stride() for t in b),
                (0,) * len(b) if bias is None else tuple(t.stride(0) for t in bias),
                tuple(t.stride() for t in out),
                PARTS=parts,
                SPLIT=shares > 1,
                TMA=tma,
                BIASED=bias is not None,
                **fits(M, Ns, Ks, (block_m, block_n, block_k)),
                **launch(dtype, block_m, block_n),
            )
    return out if shares > 1 else [t.to(dtype) for t in out]


def summed_matmul(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Σ a [M, K] · b [N, K] transposed, K may differ; any strides, one launch, rounded once."""
    dtype, M, N = b[0].dtype, a[0].shape[0], b[0].shape[0]
    out = torch.empty((M, N), dtype=tiles.compute_dtype(dtype), device=b[0].device)
    if out.numel() > 0:
        Ks = tuple(t.shape[1] for t in b)
        block_m, block_n, block_k = blocks(M, N, dtype, is_vectorizable(*a, *b))
        with tiles.on_device(out):
            summed_matmul_kernel[(triton.cdiv(M, block_m) * triton.cdiv(N, block_n),)](
                tuple(a),
                tuple(b),
                out,
                M,
                N,
                Ks,
                tuple(t.stride() for t in a),
                tuple(t.stride() for t in b),
                out.stride(),
                **fits(M, (N,), Ks, (block_m, block_n, block_k)),
                **launch(dtype, block_m, block_n),
            )
    return out.to(dtype)


def split_k_reduce(shares: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The product [M, N] of which these are the shares [shares, M, N], plus bias [N]."""
    count, M, N = shares.shape
    out = torch.empty((M, N), dtype=tiles.compute_dtype(dtype), device=shares.device)
    block = 1024
    with tiles.on_device(shares):
        split_k_reduce_kernel[(triton.cdiv(M * N, block),)](
            shares,
            bias,
            out,
            M * N,
            N,
            0 if bias is None else bias.stride(0),
            SHARES=count,
            BIASED=bias is not None,
            BLOCK=block,
        )
    return out.to(dtype)


def split_k_factor(M: int, Ns: Sequence[int], K: int, dtype: torch.dtype, device: torch.device) -> int:
    """Into how many shares the sums of these products go, a power of two: enough for a tile for every processor.

    Only where rows are so few that the operands b are what is read: elsewhere the workspace would cost more.
    """
    if M > 64 or M == 0:
        return 1
    block_m, block_n, block_k = blocks(M, max(Ns), dtype)
    count = triton.cdiv(M, block_m) * sum(triton.cdiv(N, block_n) for N in Ns)
    steps = triton.cdiv(K, block_k)
    most = min(dispatch.num_sms(device) // max(1, count), steps // MIN_STEPS, MAX_SPLIT_K)
    return 1 << max(0, most.bit_length() - 1)


def blocks(M: int, N: int, dtype: torch.dtype, is_vectorizable: bool = True) -> tuple[int, int, int]:
    """Tile of out and step along K: tiles no taller than the rows there are, and few rows spread over many tiles.

    Where loads are not vectorised every element has an address of its own, in registers: steps are half as long, and in
    float32 tiles half as wide.
    """
    if dtype == torch.float64:
        return 32, 64, 16
    block_m = 64 if M > 16 else 16
    if dtype == torch.float32:  # three products each: registers are the limit
        return (block_m, 64, 32) if is_vectorizable else (block_m, 32, 16)
    return 128 if M > 64 else block_m, 128 if M > 64 and N > 64 else 64, 64 if is_vectorizable else 32


def is_vectorizable(*matrices: Tensor) -> bool:
    """Whether loads can be 16 bytes wide, as far as Triton sees: it looks for strides that are multiples of 16."""
    return all(t.data_ptr() % 16 == 0 and 1 in t.stride()[-2:] and max(t.stride()[-2:]) % 16 == 0 for t in matrices)


def fits(M: int, Ns: Sequence[int], Ks: Sequence[int], block: tuple[int, int, int]) -> dict[str, object]:
    """Blocks of a launch, and along which sides they need no masks."""
    block_m, block_n, block_k = block
    return {
        "EVEN_M": M % block_m == 0,
        "EVEN_N": all(N % block_n == 0 for N in Ns),
        "EVEN_K": all(K % block_k == 0 for K in Ks),
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
    }


def launch(dtype: torch.dtype, block_m: int, block_n: int) -> dict[str, object]:
    """Order of tiles, arithmetic, warps and stages of a product with tiles of this size."""
    warps = 8 if block_m * block_n > 64 * 128 else 4
    # The assembler would rather spill a few registers than hold one block less; AMD's knows no such limit.
    registers = {} if torch.version.hip else {"maxnreg": 255}
    return {"GROUP_M": 8, "num_warps": warps, "num_stages": 3, **registers, **tiles.arithmetic(dtype)}
