"""Matrix products in Triton, for one or several right-hand sides in one launch.

Operands have any strides: with strides exchanged the same kernel serves the products of the backward pass. Where the
tiles of the result are too few to fill the GPU, the sum over K is split (split-K): each program writes its part of a
tile to a workspace, and the next reader of the result adds the parts in a fixed order, so that results are
deterministic.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sieve_kernels.autotune.config import (
    ANY,
    SPLITTABLE,
    UNALIGNED,
    GemmConfig,
    GemmShape,
    TunedKernel,
    fits_shared_memory,
)
from sieve_kernels.common import tiles
from sieve_kernels.common.gemm_kernel import matmul_kernel, split_k_reduce_kernel, summed_matmul_kernel
from sieve_kernels.core.device import is_amd, num_sms

MAX_SPLIT_K = 4
"""Most split-K parts: each reader of the result reads that many elements instead of one."""

MIN_STEPS = 4
"""Fewest steps along K per part: fewer would not fill the load pipeline."""


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None, config: GemmConfig | None = None) -> Tensor:
    """a [M, K] times b [N, K] transposed, plus bias [N]; any strides, accumulated in float32 (float64 for float64)."""
    return grouped_gemm([a], [b], None if bias is None else [bias], config)[0]


def grouped_gemm(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    bias: Sequence[Tensor] | None = None,
    config: GemmConfig | None = None,
) -> list[Tensor]:
    """Several products a [M, K] · b [N, K] transposed, plus bias [N], in one launch; M is common, N and K may differ.

    Each a may also be in parts [split_k, M, K], as this function returns them, if all have the same number of parts.
    With `config.split_k` > 1 a result is [split_k, M, N] in the accumulator's dtype; its sum over parts is the product.
    """
    dtype, device, M = b[0].dtype, b[0].device, a[0].shape[-2]
    parts = a[0].shape[0] if a[0].dim() == 3 else 1
    Ns, Ks = tuple(t.shape[0] for t in b), tuple(t.shape[1] for t in b)
    config = config or MATMUL.choose(shape_of(a, b))
    split_k = config.split_k
    # Results, or split-K parts of them.
    if split_k > 1:
        out = [torch.empty((split_k, M, N), dtype=tiles.accumulator(dtype), device=device) for N in Ns]
    else:
        out = [torch.empty((M, N), dtype=tiles.compute_dtype(dtype), device=device) for N in Ns]
    # One launch covers the tiles of all products.
    num_tiles_n = sum(triton.cdiv(N, config.block_n) for N in Ns)
    tma = _takes_descriptors(a, b) and config.block_m >= 64
    if M > 0 and num_tiles_n > 0:
        with tiles.on_device(b[0]):
            matmul_kernel[(triton.cdiv(M, config.block_m) * num_tiles_n, split_k)](
                TensorDescriptor.from_tensor(a[0], [config.block_m, config.block_k]) if tma else tuple(a),
                TensorDescriptor.from_tensor(b[0], [config.block_n, config.block_k]) if tma else tuple(b),
                (None,) * len(b) if bias is None else tuple(bias),
                tuple(out),
                M,
                Ns,
                Ks,
                num_tiles_n,
                triton.cdiv(max(Ks), split_k * config.block_k) * config.block_k,
                tuple(t.stride() for t in a),
                tuple(t.stride() for t in b),
                (0,) * len(b) if bias is None else tuple(t.stride(0) for t in bias),
                tuple(t.stride() for t in out),
                PARTS=parts,
                SPLIT_K=split_k > 1,
                TMA=tma,
                BIASED=bias is not None,
                **constants(config, M, Ns, Ks, dtype),
            )
    return out if split_k > 1 else [t.to(dtype) for t in out]


def split_gemm(a: Tensor, b: Sequence[Tensor]) -> list[Tensor]:
    """Products a [M, K] · b [N, K] transposed for a reader that adds parts: [M, N], or for few rows [split_k, M, N]."""
    inputs = [a] * len(b)
    return grouped_gemm(inputs, b, config=MATMUL.choose(shape_of(inputs, b, SPLITTABLE)))


def summed_matmul(a: Sequence[Tensor], b: Sequence[Tensor], config: GemmConfig | None = None) -> Tensor:
    """Σ a [M, K] · b [N, K] transposed, K may differ; any strides, one launch, rounded once."""
    dtype, M, N = b[0].dtype, a[0].shape[0], b[0].shape[0]
    out = torch.empty((M, N), dtype=tiles.compute_dtype(dtype), device=b[0].device)
    if out.numel() > 0:
        Ks = tuple(t.shape[1] for t in b)
        traits = frozenset() if is_vectorizable(*a, *b) else frozenset((UNALIGNED,))
        shape = GemmShape(M, (N,), Ks, dtype, b[0].device, 8 * dtype.itemsize, traits)
        config = config or SUMMED_MATMUL.choose(shape)
        with tiles.on_device(out):
            summed_matmul_kernel[(triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n),)](
                tuple(a),
                tuple(b),
                out,
                M,
                N,
                Ks,
                tuple(t.stride() for t in a),
                tuple(t.stride() for t in b),
                out.stride(),
                **constants(config, M, (N,), Ks, dtype),
            )
    return out.to(dtype)


def split_k_reduce(parts: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The product [M, N] whose parts these are, [split_k, M, N], plus bias [N]."""
    split_k, M, N = parts.shape
    out = torch.empty((M, N), dtype=tiles.compute_dtype(dtype), device=parts.device)
    block = 1024
    with tiles.on_device(parts):
        split_k_reduce_kernel[(triton.cdiv(M * N, block),)](
            parts,
            bias,
            out,
            M * N,
            N,
            0 if bias is None else bias.stride(0),
            SPLIT_K=split_k,
            BIASED=bias is not None,
            BLOCK=block,
        )
    return out.to(dtype)


def shape_of(a: Sequence[Tensor], b: Sequence[Tensor], *traits: str) -> GemmShape:
    """The shape of products of a [M, K], or its parts [split_k, M, K], with b [N, K] transposed."""
    aligned = _takes_descriptors(a, b) or is_vectorizable(*a, *b)
    Ns, Ks, dtype = tuple(t.shape[0] for t in b), tuple(t.shape[1] for t in b), b[0].dtype
    traits = frozenset(traits if aligned else (*traits, UNALIGNED))
    return GemmShape(a[0].shape[-2], Ns, Ks, dtype, b[0].device, 8 * dtype.itemsize, traits)


def _takes_descriptors(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    # Some versions of Triton cannot launch with descriptors in a tuple, so only single products use them.
    return len(b) == 1 and tiles.has_descriptor(a[0]) and tiles.has_descriptor(b[0])


def is_vectorizable(*matrices: Tensor) -> bool:
    """Whether Triton makes loads 16 bytes wide: it requires strides that are multiples of 16."""
    return all(t.data_ptr() % 16 == 0 and 1 in t.stride()[-2:] and max(t.stride()[-2:]) % 16 == 0 for t in matrices)


def constants(
    config: GemmConfig, M: int, Ns: Sequence[int], Ks: Sequence[int], dtype: torch.dtype
) -> dict[str, object]:
    """Constants of a launch: its config, the sides that need no masks, and the arithmetic."""
    # The assembler would spill registers to hold one more block; AMD's assembler has no such limit.
    registers = {} if is_amd() else {"maxnreg": 255}
    return {
        "EVEN_M": M % config.block_m == 0,
        "EVEN_N": all(N % config.block_n == 0 for N in Ns),
        "EVEN_K": all(K % config.block_k == 0 for K in Ks),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        **registers,
        **tiles.arithmetic(dtype),
    }


def gemm_config(shape: GemmShape) -> GemmConfig:
    """The config: tiles not taller than the number of rows; few rows are spread over many tiles.

    Where loads are not vectorised, each element has its own address in registers, so steps are half as long, and
    float32 tiles half as wide.
    """
    block_m, block_n, block_k = _blocks(shape.M, max(shape.Ns), shape.dtype, UNALIGNED not in shape.traits)
    split_k = split_k_factor(shape) if SPLITTABLE in shape.traits else 1
    return GemmConfig(block_m, block_n, block_k, split_k, warps_of(block_m, block_n))


def split_k_factor(shape: GemmShape) -> int:
    """Number of split-K parts of these products, a power of two: enough to give every multiprocessor a tile.

    Sums are split only for few rows, where reading b dominates; elsewhere the workspace would cost more.
    """
    M, K = shape.M, shape.Ks[0]
    if M > 64 or M == 0:
        return 1
    block_m, block_n, block_k = _blocks(M, max(shape.Ns), shape.dtype)
    count = triton.cdiv(M, block_m) * sum(triton.cdiv(N, block_n) for N in shape.Ns)
    most = min(num_sms(shape.device) // max(1, count), triton.cdiv(K, block_k) // MIN_STEPS, MAX_SPLIT_K)
    return 1 << max(0, most.bit_length() - 1)


def _blocks(M: int, N: int, dtype: torch.dtype, is_vectorizable: bool = True) -> tuple[int, int, int]:
    if dtype == torch.float64:
        return 32, 64, 16
    block_m = 64 if M > 16 else 16
    if dtype == torch.float32:  # three products each: registers are the limit
        return (block_m, 64, 32) if is_vectorizable else (block_m, 32, 16)
    return 128 if M > 64 else block_m, 128 if M > 64 and N > 64 else 64, 64 if is_vectorizable else 32


def warps_of(block_m: int, block_n: int) -> int:
    """Warps for a tile of this size."""
    return 8 if block_m * block_n > 64 * 128 else 4


CONFIGS = {
    ANY: (
        GemmConfig(16, 64, 128, num_stages=2),
        GemmConfig(64, 64, 64, num_stages=4),
        GemmConfig(64, 128, 64),
        GemmConfig(128, 64, 64),
        GemmConfig(128, 128, 64, num_warps=8, num_stages=4),
        GemmConfig(128, 256, 64, num_warps=8),
    )
}
"""Configs that are measured in addition to the cost model's."""

MATMUL = TunedKernel("matmul", gemm_config, CONFIGS, fits_shared_memory)
SUMMED_MATMUL = TunedKernel("summed_matmul", gemm_config, CONFIGS, fits_shared_memory)
