"""Triton kernel and launchers of the pivoted pair: two products whose results are stored to the columns that an index
names."""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.autotune.config import GemmConfig, GemmShape, TunedKernel, fits_shared_memory
from sieve_kernels.common import tiles
from sieve_kernels.common.gemm import CONFIGS, constants, gemm_config, is_vectorizable, matmul, shape_of
from sieve_kernels.common.gemm_kernel import swizzle_tile
from sieve_kernels.core.checks import as_rows


@triton.jit
def scatter_matmul_kernel(
    a_ptr,  # [M, K]
    b_ptr,  # [N, K]
    columns_ptr,  # [N] int64
    bias_ptr,  # [width of out]
    out_ptr,  # [M, width]
    kept_ptr,  # [M, N]
    M,
    N,
    K,
    width,
    stride_am,
    stride_ak,
    stride_bn,
    stride_bk,
    stride_columns,
    stride_bias,
    stride_om,
    stride_on,
    stride_km,
    stride_kn,
    BIASED: tl.constexpr,
    KEEP: tl.constexpr,  # also write the product itself, unbiased and unscattered, to kept
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
    """out[:, columns] = a bᵀ + bias[columns]. Grid: (tiles of a bᵀ,).

    Tiles of the same rows are neighbours in order, so that L2 can combine the scattered columns of a row. Columns
    outside out are skipped: the host does not check the index.
    """
    row, col = swizzle_tile(tl.program_id(0), M, tl.cdiv(N, BLOCK_N), BLOCK_M, GROUP_M)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tiles.load_tile(a_ptr, rows, k, stride_am, stride_ak, M, K, EVEN_M, EVEN_K)  # [BLOCK_M, BLOCK_K]
        b = tiles.load_tile(b_ptr, cols, k, stride_bn, stride_bk, N, K, EVEN_N, EVEN_K)  # [BLOCK_N, BLOCK_K]
        acc = tiles.multiply(a, tl.trans(b), acc, PRECISION, UPCAST)
    # The product itself, for the next one; then its columns where they belong.
    if KEEP:
        tiles.store_tile(kept_ptr, acc, rows, cols, stride_km, stride_kn, M, N)
    columns = tl.load(columns_ptr + cols * stride_columns, mask=cols < N, other=0)  # [BLOCK_N]
    inside = (cols < N) & (columns >= 0) & (columns < width)
    if BIASED:
        acc += tl.load(bias_ptr + columns * stride_bias, mask=inside, other=0.0).to(ACC)[None, :]
    at = out_ptr + rows[:, None].to(tl.int64) * stride_om + columns[None, :] * stride_on
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=(rows < M)[:, None] & inside[None, :])


def pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m], y[..., permutation] = [z, z Cᵀ] + bias[permutation], z = x Aᵀ, in two launches.

    x [..., n], A [r, n], C [m - r, r], permutation [m] int64, bias [m].
    """
    rows, r = as_rows(x), A.shape[0]
    out = torch.empty((rows.shape[0], len(permutation)), dtype=tiles.compute_dtype(x.dtype), device=x.device)
    z = torch.empty((rows.shape[0], r), dtype=out.dtype, device=x.device)
    _scatter(rows, A, permutation[:r], bias, out, z)
    _scatter(z.to(x.dtype), C, permutation[r:], bias, out, None)
    return out.to(x.dtype).reshape(*x.shape[:-1], len(permutation))


SCATTERED = "scattered one by one"
"""Trait of a product whose results are stored one by one to two places; it takes smaller tiles."""


def _scatter_config(shape: GemmShape) -> GemmConfig:
    config = gemm_config(shape)
    if SCATTERED in shape.traits:
        block_m = min(config.block_m, 64)
        config = replace(config, block_m=block_m, block_n=64, block_k=min(config.block_k, 32), num_warps=4)
    return config


SCATTER_MATMUL = TunedKernel("scatter_matmul", _scatter_config, CONFIGS, fits_shared_memory)


def _scatter(
    a: Tensor,
    b: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    out: Tensor,
    kept: Tensor | None,
    config: GemmConfig | None = None,
) -> None:
    """out[:, columns] = a bᵀ + bias[columns], and kept = a bᵀ; a [M, K], b [N, K], columns [N]."""
    (M, K), N = a.shape, b.shape[0]
    if M * N == 0:
        return
    # The tiles depend on how results are stored: one by one they take more registers.
    traits = () if is_vectorizable(a, b, out, *([] if kept is None else [kept])) else (SCATTERED,)
    config = config or SCATTER_MATMUL.choose(shape_of([a], [b], *traits))
    with tiles.on_device(a):
        scatter_matmul_kernel[(triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n),)](
            a,
            b,
            columns,
            bias,
            out,
            kept,
            M,
            N,
            K,
            out.shape[1],
            *a.stride(),
            *b.stride(),
            columns.stride(0),
            0 if bias is None else bias.stride(0),
            *out.stride(),
            *((0, 0) if kept is None else kept.stride()),
            BIASED=bias is not None,
            KEEP=kept is not None,
            **constants(config, M, (N,), (K,), a.dtype),
        )


def pivoted_backward(
    grad: Tensor, x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, needed: list[bool]
) -> list[Tensor]:
    """Gradients of x [..., n], A [r, n] and C [m - r, r], those that are needed; grad [..., m]. Recomputes z = x Aᵀ."""
    rows, tokens, r = as_rows(grad).index_select(1, permutation), as_rows(x), A.shape[0]
    through = rows[:, r:]
    gradients = []
    if needed[0] or needed[1]:
        dz = rows[:, :r] + matmul(through, C.T)
        gradients += [matmul(dz, A.T).reshape(x.shape)] if needed[0] else []
        gradients += [matmul(dz.T, tokens.T)] if needed[1] else []
    if needed[2]:
        gradients += [matmul(through.T, matmul(tokens, A).T)]
    return gradients
