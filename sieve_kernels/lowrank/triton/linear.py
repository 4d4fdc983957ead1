"""`lowrank_linear` on the GPU: two products; for small ranks one kernel that keeps the r-wide intermediate on chip."""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.autotune.config import ANY, GemmConfig, GemmShape, TunedKernel, fits_shared_memory
from sieve_kernels.common import tiles
from sieve_kernels.common.gemm import grouped_gemm, matmul, split_gemm
from sieve_kernels.core.checks import as_rows


@triton.jit
def fused_kernel(
    x_ptr,  # [T, n]
    a_ptr,  # [r, n]
    b_ptr,  # [m, r]
    bias_ptr,  # [m]
    out_ptr,  # [T, m]
    T,
    n,
    m,
    r,
    stride_xt,
    stride_xn,
    stride_ar,
    stride_an,
    stride_bm,
    stride_br,
    stride_bias,
    stride_ot,
    stride_om,
    BIASED: tl.constexpr,
    EVEN_T: tl.constexpr,  # T is a multiple of BLOCK_T, …: no masks
    EVEN_N: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_R: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out = (x Aᵀ) Bᵀ + bias for r ≤ BLOCK_R. Grid: (tiles of tokens,); each program makes whole rows of out."""
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    ranks = tl.arange(0, BLOCK_R)
    # z of these tokens, which stays in registers.
    z = tl.zeros((BLOCK_T, BLOCK_R), dtype=ACC)
    for start in range(0, n, BLOCK_N):
        k = start + tl.arange(0, BLOCK_N)
        x = tiles.load_tile(x_ptr, tokens, k, stride_xt, stride_xn, T, n, EVEN_T, EVEN_N)  # [BLOCK_T, BLOCK_N]
        a = tiles.load_tile(a_ptr, ranks, k, stride_ar, stride_an, r, n, EVEN_R, EVEN_N)  # [BLOCK_R, BLOCK_N]
        z = tiles.multiply(x, tl.trans(a), z, PRECISION, UPCAST)
    # Their outputs, a tile of columns at a time.
    if not UPCAST:
        z = z.to(b_ptr.dtype.element_ty)
    for start in range(0, m, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        b = tiles.load_tile(b_ptr, cols, ranks, stride_bm, stride_br, m, r, EVEN_M, EVEN_R)  # [BLOCK_M, BLOCK_R]
        y = tiles.multiply(z, tl.trans(b), tl.zeros((BLOCK_T, BLOCK_M), dtype=ACC), PRECISION, UPCAST)
        if BIASED:
            y += tl.load(bias_ptr + cols * stride_bias, mask=cols < m, other=0.0).to(ACC)[None, :]
        tiles.store_tile(out_ptr, y, tokens, cols, stride_ot, stride_om, T, m)


def linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = (x Aᵀ) Bᵀ + bias in two launches; x [..., n], A [r, n], B [m, r], bias [m].

    For few rows the first launch may write z = x Aᵀ in split-K parts, which the second adds while it reads them.
    """
    z = split_gemm(as_rows(x), [A])
    (y,) = grouped_gemm(z, [B], None if bias is None else [bias])
    return y.reshape(*x.shape[:-1], B.shape[0])


def _fused_config(shape: GemmShape) -> GemmConfig:
    block = 64 if shape.dtype.itemsize == 2 else 32
    return GemmConfig(64, block, block)


FUSED = TunedKernel(
    "lowrank_fused",
    _fused_config,
    {ANY: (GemmConfig(64, 64, 64, num_warps=8), GemmConfig(128, 64, 64, num_warps=8), GemmConfig(64, 32, 32))},
    # Its widest step: x [BLOCK_T, BLOCK_N] and A [BLOCK_R, BLOCK_N], of which `dispatch.fits_on_chip` bounds the rank.
    lambda config, shape: fits_shared_memory(replace(config, block_n=128), shape),
)


def linear_fused(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, config: GemmConfig | None = None) -> Tensor:
    """`linear` in one launch, for ranks that `dispatch` considers small enough."""
    shape, x = x.shape, as_rows(x)
    (T, n), (m, r) = x.shape, B.shape
    out = torch.empty((T, m), dtype=tiles.compute_dtype(x.dtype), device=x.device)
    if out.numel() == 0:
        return out.to(x.dtype).reshape(*shape[:-1], m)
    # One program per tile of tokens, because z of a token is needed for its whole row.
    block_r = max(16, triton.next_power_of_2(r))
    config = config or FUSED.choose(GemmShape(T, (m,), (n,), x.dtype, x.device, 8 * x.dtype.itemsize))
    with tiles.on_device(x):
        fused_kernel[(triton.cdiv(T, config.block_m),)](
            x,
            A,
            B,
            bias,
            out,
            T,
            n,
            m,
            r,
            *x.stride(),
            *A.stride(),
            *B.stride(),
            0 if bias is None else bias.stride(0),
            *out.stride(),
            BIASED=bias is not None,
            EVEN_T=T % config.block_m == 0,
            EVEN_N=n % config.block_k == 0,
            EVEN_M=m % config.block_n == 0,
            EVEN_R=r == block_r,
            BLOCK_T=config.block_m,
            BLOCK_M=config.block_n,
            BLOCK_N=config.block_k,
            BLOCK_R=block_r,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            **tiles.arithmetic(x.dtype),
        )
    return out.to(x.dtype).reshape(*shape[:-1], m)


def linear_backward(grad: Tensor, x: Tensor, A: Tensor, B: Tensor, needed: list[bool]) -> list[Tensor]:
    """Gradients of x [..., n], A [r, n] and B [m, r], those that are needed; grad [..., m]. Recomputes z = x Aᵀ."""
    rows, tokens = as_rows(grad), as_rows(x)
    gradients = []
    if needed[0] or needed[1]:
        dz = matmul(rows, B.T)
        gradients += [matmul(dz, A.T).reshape(x.shape)] if needed[0] else []
        gradients += [matmul(dz.T, tokens.T)] if needed[1] else []
    if needed[2]:
        gradients += [matmul(rows.T, matmul(tokens, A).T)]
    return gradients
