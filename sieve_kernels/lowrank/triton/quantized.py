"""`lowrank_linear_quantized` on the GPU: products whose right-hand side is dequantised in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.autotune.config import (
    SPLITTABLE,
    UNALIGNED,
    GemmConfig,
    GemmShape,
    TunedKernel,
    fits_shared_memory,
)
from sieve_kernels.common import tiles
from sieve_kernels.common.gemm import CONFIGS, constants, is_vectorizable, split_k_factor, warps_of
from sieve_kernels.common.gemm_kernel import swizzle_tile
from sieve_kernels.core.checks import as_rows
from sieve_kernels.lowrank.quantize import GROUP as COLUMNS


@triton.jit
def quantized_kernel(
    a_ptr,  # [M, K], or [PARTS, M, K]
    b_ptr,  # [N, K] int8, or [N, ⌈K/2⌉] uint8 if PACKED
    scale_ptr,  # [N], or [N, ⌈K/COLUMNS⌉] if PACKED
    bias_ptr,  # [N]
    out_ptr,  # [M, N], or [split_k, M, N] if SPLIT_K
    M,
    N,
    K,
    split_size,  # elements along K of a part of the sum, a multiple of BLOCK_K
    stride_a,
    stride_b,
    stride_scale,
    stride_bias,
    stride_out,
    DTYPE: tl.constexpr,  # in which to multiply
    PACKED: tl.constexpr,
    COLUMNS: tl.constexpr,  # per scale, a multiple of BLOCK_K
    PARTS: tl.constexpr,
    SPLIT_K: tl.constexpr,  # whether the sum is split
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
    """out = a bᵀ + bias, where b is integers times scales. Integers are exact in every dtype; scales multiply sums.

    Grid: (tiles of out, split_k).
    """
    row, col = swizzle_tile(tl.program_id(0), M, tl.cdiv(N, BLOCK_N), BLOCK_M, GROUP_M)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col * BLOCK_N + tl.arange(0, BLOCK_N)
    # This program's part of the sum over K.
    begin = 0
    end = K
    if SPLIT_K:
        begin = tl.program_id(1) * split_size
        end = tl.minimum(begin + split_size, K)
    OPERAND: tl.constexpr = ACC if UPCAST else DTYPE
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for start in range(begin, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tiles.load_tile(a_ptr, rows, k, stride_a[-2], stride_a[-1], M, K, EVEN_M, EVEN_K)  # [BLOCK_M, BLOCK_K]
        for part in tl.static_range(1, PARTS):
            at = a_ptr + tl.cast(part, tl.int64) * stride_a[0]
            a += tiles.load_tile(at, rows, k, stride_a[-2], stride_a[-1], M, K, EVEN_M, EVEN_K)
        if PARTS > 1 and not UPCAST:
            a = a.to(OPERAND)
        if PACKED:
            # Two integers of 4 bits to a byte; the scale of this step's columns multiplies its product.
            pair = start // 2 + tl.arange(0, BLOCK_K // 2)
            pairs = tiles.load_tile(b_ptr, cols, pair, stride_b[0], stride_b[1], N, (K + 1) // 2, EVEN_N, EVEN_K)
            low = (pairs & 15).to(tl.int8) - 8  # [BLOCK_N, BLOCK_K / 2]
            high = (pairs >> 4).to(tl.int8) - 8
            b = tl.interleave(low, high).to(OPERAND)  # [BLOCK_N, BLOCK_K]
            at = scale_ptr + cols.to(tl.int64) * stride_scale[0] + start // COLUMNS * stride_scale[1]
            scale = tl.load(at, mask=cols < N, other=0.0).to(ACC)
            zero = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
            acc += tiles.multiply(a, tl.trans(b), zero, PRECISION, UPCAST) * scale[None, :]
        else:
            b = tiles.load_tile(b_ptr, cols, k, stride_b[0], stride_b[1], N, K, EVEN_N, EVEN_K).to(OPERAND)
            acc = tiles.multiply(a, tl.trans(b), acc, PRECISION, UPCAST)
    # Scales of 8 bits multiply the finished sum; then the bias, and where the tile goes.
    if not PACKED:
        acc *= tl.load(scale_ptr + cols * stride_scale[0], mask=cols < N, other=0.0).to(ACC)[None, :]
    if BIASED:
        acc += tl.load(bias_ptr + cols * stride_bias, mask=cols < N, other=0.0).to(ACC)[None, :]
    if SPLIT_K:
        out_ptr += tl.program_id(1).to(tl.int64) * stride_out[0]
    tiles.store_tile(out_ptr, acc, rows, cols, stride_out[-2], stride_out[-1], M, N)


def quantized(x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = (x Aᵀ) Bᵀ + bias in two launches; the first may leave z in parts, which the second adds.

    x [..., n]; of A [r, n]: int8 [r, n] and scales [r], or uint8 [r, ⌈n/2⌉] and scales [r, ⌈n/64⌉]; B [m, r] likewise.
    """
    z = _product(as_rows(x), A_q, A_scale, None, x.dtype, SPLITTABLE)
    y = _product(z, B_q, B_scale, bias, x.dtype)
    return y.reshape(*x.shape[:-1], B_q.shape[0])


def _product(
    a: Tensor,
    q: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *traits: str,
    config: GemmConfig | None = None,
) -> Tensor:
    """a [M, K], or its parts [split_k, M, K], times the matrix [N, K] of q and scale, transposed, plus bias [N]."""
    (M, K), N = a.shape[-2:], q.shape[0]
    bits = 4 if q.dtype == torch.uint8 else 8
    traits = frozenset(traits if is_vectorizable(a, q) else (*traits, UNALIGNED))
    config = config or QUANTIZED.choose(GemmShape(M, (N,), (K,), dtype, a.device, bits, traits))
    # The result, or split-K parts of it.
    split_k = config.split_k
    if split_k > 1:
        out = torch.empty((split_k, M, N), dtype=tiles.accumulator(dtype), device=a.device)
    else:
        out = torch.empty((M, N), dtype=tiles.compute_dtype(dtype), device=a.device)
    if out.numel() > 0:
        with tiles.on_device(a):
            quantized_kernel[(triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n), split_k)](
                a,
                q,
                scale,
                bias,
                out,
                M,
                N,
                K,
                triton.cdiv(K, split_k * config.block_k) * config.block_k,
                a.stride(),
                q.stride(),
                scale.stride(),
                0 if bias is None else bias.stride(0),
                out.stride(),
                DTYPE=tiles.TRITON_DTYPES[dtype],
                PACKED=q.dtype == torch.uint8,
                COLUMNS=COLUMNS,
                PARTS=a.shape[0] if a.dim() == 3 else 1,
                SPLIT_K=split_k > 1,
                BIASED=bias is not None,
                **constants(config, M, (N,), (K,), dtype),
            )
    return out if split_k > 1 else out.to(dtype)


def quantized_config(shape: GemmShape) -> GemmConfig:
    """The config. A step along K divides 64, so that it has one scale per row of b."""
    block_m, block_n, block_k = _blocks(shape.M, shape.dtype, UNALIGNED not in shape.traits, packed=shape.bits == 4)
    split_k = split_k_factor(shape) if SPLITTABLE in shape.traits else 1
    return GemmConfig(block_m, block_n, block_k, split_k, warps_of(block_m, block_n))


def _blocks(M: int, dtype: torch.dtype, is_vectorizable: bool, packed: bool) -> tuple[int, int, int]:
    block_m = 64 if M > 16 else 16
    if dtype == torch.float32:
        if packed and not is_vectorizable:
            # Of 4 bits a thread unpacks 8 neighbours, and 4 threads share a row: Triton 3.6 counts some of a shorter
            # step twice. Numbers that are addressed one by one leave room for fewer rows instead.
            return min(block_m, 32), 32, 32
        return block_m, 32 if block_m > 16 else 64, 32 if is_vectorizable else 16
    return block_m, 64, 64 if is_vectorizable else 32


def _supports(config: GemmConfig, shape: GemmShape) -> bool:
    # A step of 4 bits has one scale, and is as long as four threads unpack.
    one_scale = shape.bits == 8 or (COLUMNS % config.block_k == 0 and config.block_k >= 32)
    return one_scale and fits_shared_memory(config, shape)


QUANTIZED = TunedKernel("quantized", quantized_config, CONFIGS, _supports)
