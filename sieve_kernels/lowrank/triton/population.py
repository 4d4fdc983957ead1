"""`lowrank_linear_population` on the GPU: all candidates' rows as one matrix, each row with a rank of its own."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.autotune.config import UNALIGNED, GemmConfig, GemmShape, TunedKernel, fits_shared_memory
from sieve_kernels.common import tiles
from sieve_kernels.common.gemm import CONFIGS, constants, gemm_config, is_vectorizable, matmul
from sieve_kernels.common.gemm_kernel import gemm_mainloop, swizzle_tile
from sieve_kernels.core.checks import as_rows


@triton.jit
def population_kernel(
    a_ptr,  # [M, K]
    b_ptr,  # [N, K]
    ranks_ptr,  # [P]
    out_ptr,  # [M, N]
    M,  # rows of all candidates, P T
    N,
    K,
    T,  # rows per candidate
    stride_a,
    stride_b,
    stride_ranks,
    stride_out,
    NARROW: tl.constexpr,  # whether N is the rank, or else K
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
    """out = a bᵀ up to each row's rank. If NARROW, columns of out beyond the rank are zero; else columns of a beyond it
    are zero, and the sum ends at the largest rank of the tile's rows. Grid: (tiles of out,)."""
    row, col = swizzle_tile(tl.program_id(0), M, tl.cdiv(N, BLOCK_N), BLOCK_M, GROUP_M)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col * BLOCK_N + tl.arange(0, BLOCK_N)
    # The ranks of the tile's rows, and the end of the sum.
    ranks = tl.load(ranks_ptr + rows // T * stride_ranks, mask=rows < M, other=1).to(tl.int32)
    ranks = tl.maximum(ranks, 1)
    most = tl.max(ranks, 0)
    if NARROW:
        end = tl.where(col * BLOCK_N < most, K, 0)  # nothing to sum where all is zero
    else:
        end = tl.minimum(tl.cdiv(most, BLOCK_K) * BLOCK_K, K)  # whole steps: a is zero there, and loads stay wide
    acc = gemm_mainloop(
        tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC),
        a_ptr,
        b_ptr,
        row * BLOCK_M,
        col * BLOCK_N,
        M,
        N,
        K,
        0,
        end,
        stride_a,
        stride_b,
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
    if NARROW:
        acc = tl.where(cols[None, :] < ranks[:, None], acc, 0.0)
    tiles.store_tile(out_ptr, acc, rows, cols, stride_out[0], stride_out[1], M, N)


def population(x: Tensor, A: Tensor, B: Tensor, ranks: Tensor) -> Tensor:
    """y [P, T, m] in two launches; x [P, T, n], A [R, n], B [m, R], ranks [P].

    Groups of row tiles span all candidates, so that a panel of a factor is read once for many of them.
    """
    z = _product(as_rows(x), A, ranks, x.shape[1], narrow=True)
    return _product(z, B, ranks, x.shape[1], narrow=False).reshape(*x.shape[:-1], B.shape[0])


def population_backward(
    grad: Tensor, x: Tensor, A: Tensor, B: Tensor, ranks: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of x [P, T, n], A [R, n] and B [m, R], those that are needed; grad [P, T, m]. Recomputes z."""
    rows, tokens, T = as_rows(grad), as_rows(x), x.shape[1]
    gradients = []
    if needed[0] or needed[1]:
        dz = _product(rows, B.T, ranks, T, narrow=True)
        gradients += [_product(dz, A.T, ranks, T, narrow=False).reshape(x.shape)] if needed[0] else []
        gradients += [matmul(dz.T, tokens.T)] if needed[1] else []
    if needed[2]:
        gradients += [matmul(rows.T, _product(tokens, A, ranks, T, narrow=True).T)]
    return gradients


POPULATION = TunedKernel("population", gemm_config, CONFIGS, fits_shared_memory)


def _product(a: Tensor, b: Tensor, ranks: Tensor, T: int, narrow: bool, config: GemmConfig | None = None) -> Tensor:
    """a [M, K] · b [N, K] transposed up to the rank of each row's candidate; the rank is N if narrow, else K."""
    (M, K), N, dtype = a.shape, b.shape[0], a.dtype
    out = torch.empty((M, N), dtype=tiles.compute_dtype(dtype), device=a.device)
    if out.numel() > 0:
        traits = frozenset() if is_vectorizable(a, b) else frozenset((UNALIGNED,))
        config = config or POPULATION.choose(GemmShape(M, (N,), (K,), dtype, a.device, 8 * dtype.itemsize, traits))
        with tiles.on_device(a):
            population_kernel[(triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n),)](
                a,
                b,
                ranks,
                out,
                M,
                N,
                K,
                T,
                a.stride(),
                b.stride(),
                ranks.stride(0),
                out.stride(),
                NARROW=narrow,
                **constants(config, M, (N,), (K,), dtype),
            )
    return out.to(dtype)
