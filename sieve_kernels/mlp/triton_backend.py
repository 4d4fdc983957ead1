"""Triton kernels of the gated layer and their launchers: gate and up are combined in registers, tile by tile."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.autotune.config import ANY, UNALIGNED, GemmConfig, GemmShape, TunedKernel, fits_shared_memory
from sieve_kernels.common import tiles
from sieve_kernels.common.gemm import constants, is_vectorizable, warps_of
from sieve_kernels.common.gemm_kernel import gemm_mainloop, swizzle_tile
from sieve_kernels.core.checks import as_rows
from sieve_kernels.lowrank.triton.group import group_backward, intermediates
from sieve_kernels.pointwise.activations import activate, slope


@triton.jit
def swiglu_kernel(
    z_ptrs,  # of gate and up [T, r], or [PARTS, T, r]
    b_ptrs,  # [m, r]
    grad_ptr,  # [T, m] if BACKWARD
    out_ptrs,  # [T, m]: y; if BACKWARD the gradients of gate and up
    T,
    m,
    ranks,
    strides_z,
    strides_b,
    stride_grad,
    stride_out,  # common to all outputs
    ACTIVATION: tl.constexpr,
    BACKWARD: tl.constexpr,
    PARTS: tl.constexpr,
    EVEN_M: tl.constexpr,  # T is a multiple of BLOCK_M, …: no masks
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
    """y = act(z_gate B_gateᵀ) · (z_up B_upᵀ), or the gradients of the two products. Grid: (tiles of y,)."""
    row, col = swizzle_tile(tl.program_id(0), T, tl.cdiv(m, BLOCK_N), BLOCK_M, GROUP_M)
    # The same tile of both products, so that it can be combined in registers.
    gate = gemm_mainloop(
        tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC),
        z_ptrs[0],
        b_ptrs[0],
        row * BLOCK_M,
        col * BLOCK_N,
        T,
        m,
        ranks[0],
        0,
        ranks[0],
        strides_z[0],
        strides_b[0],
        PARTS,
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
    up = gemm_mainloop(
        tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC),
        z_ptrs[1],
        b_ptrs[1],
        row * BLOCK_M,
        col * BLOCK_N,
        T,
        m,
        ranks[1],
        0,
        ranks[1],
        strides_z[1],
        strides_b[1],
        PARTS,
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
    # Combine them to y, or to the gradients of both.
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col * BLOCK_N + tl.arange(0, BLOCK_N)
    if BACKWARD:
        grad = tiles.load_tile(grad_ptr, rows, cols, stride_grad[0], stride_grad[1], T, m, EVEN_M, EVEN_N).to(ACC)
        # Gate and up were recomputed for this only.
        d_gate = grad * up * slope(gate, ACTIVATION)
        tiles.store_tile(out_ptrs[0], d_gate, rows, cols, stride_out[0], stride_out[1], T, m)
        d_up = grad * activate(gate, ACTIVATION)
        tiles.store_tile(out_ptrs[1], d_up, rows, cols, stride_out[0], stride_out[1], T, m)
    else:
        y = activate(gate, ACTIVATION) * up
        tiles.store_tile(out_ptrs[0], y, rows, cols, stride_out[0], stride_out[1], T, m)


def swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Tensor:
    """y [..., m] = act(gate) · up, two launches; x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q]."""
    (y,) = _launch(intermediates(x, [A_gate, A_up]), [B_gate, B_up], None, activation)
    return y.reshape(*x.shape[:-1], y.shape[1])


def swiglu_backward(
    grad: Tensor,
    x: Tensor,
    A_gate: Tensor,
    B_gate: Tensor,
    A_up: Tensor,
    B_up: Tensor,
    activation: str,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x, A_gate, A_up, B_gate, B_up in this order, those that are needed; grad [..., m].

    Recomputes gate and up in registers.
    """
    As, Bs = [A_gate, A_up], [B_gate, B_up]
    gradients = _launch(intermediates(x, As), Bs, as_rows(grad), activation)
    return group_backward(gradients, x, As, Bs, needed)


def _launch(
    zs: Sequence[Tensor],
    Bs: Sequence[Tensor],
    grad: Tensor | None,
    activation: str,
    config: GemmConfig | None = None,
) -> list[Tensor]:
    """y [T, m], or the gradients of gate and up given y's, from z [T, r] or its parts [split_k, T, r]."""
    dtype, T, m = Bs[0].dtype, zs[0].shape[-2], Bs[0].shape[0]
    out = [
        torch.empty((T, m), dtype=tiles.compute_dtype(dtype), device=Bs[0].device)
        for _ in range(1 if grad is None else 2)
    ]
    # One launch for both products.
    if out[0].numel() > 0:
        ranks = tuple(B.shape[1] for B in Bs)
        traits = frozenset() if is_vectorizable(*zs, *Bs) else frozenset((UNALIGNED,))
        config = config or SWIGLU.choose(GemmShape(T, (m, m), ranks, dtype, Bs[0].device, 8 * dtype.itemsize, traits))
        with tiles.on_device(out[0]):
            swiglu_kernel[(triton.cdiv(T, config.block_m) * triton.cdiv(m, config.block_n),)](
                tuple(zs),
                tuple(Bs),
                grad,
                tuple(out),
                T,
                m,
                ranks,
                tuple(z.stride() for z in zs),
                tuple(B.stride() for B in Bs),
                (0, 0) if grad is None else grad.stride(),
                out[0].stride(),
                ACTIVATION=activation,
                BACKWARD=grad is not None,
                PARTS=zs[0].shape[0] if zs[0].dim() == 3 else 1,
                **constants(config, T, (m,), ranks, dtype),
            )
    return [t.to(dtype) for t in out]


def _swiglu_config(shape: GemmShape) -> GemmConfig:
    """The config: tiles half as large as those of one product, because there are two accumulators."""
    block_m, block_n, block_k = _blocks(shape.M, shape.dtype, UNALIGNED not in shape.traits)
    return GemmConfig(block_m, block_n, block_k, num_warps=warps_of(block_m, 2 * block_n))


def _blocks(T: int, dtype: torch.dtype, is_vectorizable: bool) -> tuple[int, int, int]:
    if dtype == torch.float64:
        return 32, 32, 16
    block_m = 64 if T > 16 else 16
    if dtype == torch.float32:
        return block_m, 32, 32 if is_vectorizable else 16
    if not is_vectorizable:
        return block_m, 32, 32
    return 128 if T > 64 else block_m, 64, 64


CONFIGS = {
    ANY: (
        GemmConfig(64, 64, 64, num_stages=4),
        GemmConfig(128, 64, 64, num_warps=8, num_stages=4),
        GemmConfig(128, 128, 64, num_warps=8),
    )
}
"""Configs that are measured in addition to the cost model's."""

SWIGLU = TunedKernel("swiglu", _swiglu_config, CONFIGS, fits_shared_memory)
