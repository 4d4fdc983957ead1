"""`lowrank_linear_quantized` on the GPU: products whose right-hand side is dequantised in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.common import tiles
from sieve_kernels.common.gemm import fits, is_vectorizable, launch, split_k_factor, swizzle_tile
from sieve_kernels.core.checks import as_rows
from sieve_kernels.lowrank.quantize import GROUP as COLUMNS


@triton.jit
def quantized_kernel(
    a_ptr,  # [M, K], or [PARTS, M, K]
    b_ptr,  # [N, K] int8, or [N, ⌈K/2⌉] uint8 if PACKED
    scale_ptr,  # [N], or [N, ⌈K/COLUMNS⌉] if PACKED
    bias_ptr,  # [N]
    out_ptr,  # [M, N], or [shares, M, N]
    M,
    N,
    K,
    share,  # numbers along K per share, a multiple of BLOCK_K
    stride_a,
    stride_b,
    stride_scale,
    stride_bias,
    stride_out,
    DTYPE: tl.constexpr,  # in which to multiply
    PACKED: tl.constexpr,
    COLUMNS: tl.constexpr,  # per scale, a multiple of BLOCK_K
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
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
    """out = a bᵀ + bias, b being integers times scales: integers are exact in every dtype, and scales multiply sums.

    Grid: (tiles of out, shares).
    """
    row, col = swizzle_tile(tl.program_id(0), M, tl.cdiv(N, BLOCK_N), BLOCK_M, GROUP_M)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = 0
    end = K
    if SPLIT:
        begin = tl.program_id(1) * share
        end = tl.minimum(begin + share, K)
    WIDE: tl.constexpr = ACC if UPCAST else DTYPE
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for start in range(begin, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tiles.load_tile(a_ptr, rows, k, stride_a[-2], stride_a[-1], M, K, EVEN_M, EVEN_K)  # [BLOCK_M, BLOCK_K]
        for part in tl.static_range(1, PARTS):
            at = a_ptr + tl.cast(part, tl.int64) * stride_a[0]
            a += tiles.load_tile(at, rows, k, stride_a[-2], stride_a[-1], M, K, EVEN_M, EVEN_K)
        if PARTS > 1 and not UPCAST:
            a = a.to(WIDE)
        if PACKED:
            pair = start // 2 + tl.arange(0, BLOCK_K // 2)
            pairs = tiles.load_tile(b_ptr, cols, pair, stride_b[0], stride_b[1], N, (K + 1) // 2, EVEN_N, EVEN_K)
            low = (pairs & 15).to(tl.int8) - 8  # [BLOCK_N, BLOCK_K / 2]
            high = (pairs >> 4).to(tl.int8) - 8
            b = tl.interleave(low, high).to(WIDE)  # [BLOCK_N, BLOCK_K]
            at = scale_ptr + cols.to(tl.int64) * stride_scale[0] + start // COLUMNS * stride_scale[1]
            scale = tl.load(at, mask=cols < N, other=0.0).to(ACC)
            zero = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
            acc += tiles.multiply(a, tl.trans(b), zero, PRECISION, UPCAST) * scale[None, :]
        else:
            b = tiles.load_tile(b_ptr, cols, k, stride_b[0], stride_b[1], N, K, EVEN_N, EVEN_K).to(WIDE)
            acc = tiles.multiply(a, tl.trans(b), acc, PRECISION, UPCAST)
    if not PACKED:
        acc *= tl.load(scale_ptr + cols * stride_scale[0], mask=cols < N, other=0.0).to(ACC)[None, :]
    if BIASED:
        acc += tl.load(bias_ptr + cols * stride_bias, mask=cols < N, other=0.0).to(ACC)[None, :]
    if SPLIT:
        out_ptr += tl.program_id(1).to(tl.int64) * stride_out[0]
    tiles.store_tile(out_ptr, acc, rows, cols, stride_out[-2], stride_out[-1], M, N)


def quantized(x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = (x Aᵀ) Bᵀ + bias in two launches; the first may leave z in shares, which the second adds.

    x [..., n]; of A [r, n]: int8 [r, n] and scales [r], or uint8 [r, ⌈n/2⌉] and scales [r, ⌈n/64⌉]; B [m, r] likewise.
    """
    rows, r = as_rows(x), A_q.shape[0]
    shares = split_k_factor(rows.shape[0], (r,), rows.shape[1], x.dtype, x.device)
    z = _product(rows, A_q, A_scale, None, x.dtype, shares)
    y = _product(z, B_q, B_scale, bias, x.dtype)
    return y.reshape(*x.shape[:-1], B_q.shape[0])


def _product(a: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype, shares: int = 1) -> Tensor:
    """a [M, K], or its shares [parts, M, K], times the matrix [N, K] of q and scale, transposed, plus bias [N]."""
    (M, K), N = a.shape[-2:], q.shape[0]
    if shares > 1:
        out = torch.empty((shares, M, N), dtype=tiles.accumulator(dtype), device=a.device)
    else:
        out = torch.empty((M, N), dtype=tiles.compute_dtype(dtype), device=a.device)
    block_m, block_n, block_k = _blocks(M, dtype, is_vectorizable(a, q), q.dtype == torch.uint8)
    if out.numel() > 0:
        with tiles.on_device(a):
            quantized_kernel[(triton.cdiv(M, block_m) * triton.cdiv(N, block_n), shares)](
                a,
                q,
                scale,
                bias,
                out,
                M,
                N,
                K,
                triton.cdiv(K, shares * block_k) * block_k,
                a.stride(),
                q.stride(),
                scale.stride(),
                0 if bias is None else bias.stride(0),
                out.stride(),
                DTYPE=tiles.TRITON_DTYPES[dtype],
                PACKED=q.dtype == torch.uint8,
                COLUMNS=COLUMNS,
                PARTS=a.shape[0] if a.dim() == 3 else 1,
                SPLIT=shares > 1,
                BIASED=bias is not None,
                **fits(M, (N,), (K,), (block_m, block_n, block_k)),
                **launch(dtype, block_m, block_n),
            )
    return out if shares > 1 else out.to(dtype)


def _blocks(M: int, dtype: torch.dtype, is_vectorizable: bool, packed: bool) -> tuple[int, int, int]:
    """Tile of out and step along K, of which 64 is a multiple: a step has one scale per row of b."""
    block_m = 64 if M > 16 else 16
    if dtype == torch.float32:
        if packed and not is_vectorizable:
            # Of 4 bits a thread unpacks 8 neighbours, and 4 threads share a row: Triton 3.6 counts some of a shorter
            # step twice. Numbers that are addressed one by one leave room for fewer rows instead.
            return min(block_m, 32), 32, 32
        return block_m, 32 if block_m > 16 else 64, 32 if is_vectorizable else 16
    return block_m, 64, 64 if is_vectorizable else 32
