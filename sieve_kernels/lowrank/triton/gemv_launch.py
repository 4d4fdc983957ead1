"""Launches of the GEMV kernel: their products, configs, and how launches overlap."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
import triton
import triton.language as tl

from sieve_kernels.autotune.config import ANY, GemmConfig, GemmShape, TunedKernel
from sieve_kernels.core.device import INTERPRETED, has_tma, is_amd, num_sms, shared_memory
from sieve_kernels.core.launch import Launch
from sieve_kernels.lowrank.triton.gemv_kernel import gemv_kernel

MOST_MEMBERS = 3
"""Most products in one launch: query, key and value."""

ALIGNED = 8
"""Rows must begin at multiples of so many elements of 16 bits, 16 bytes."""

RESIDENT = 3
"""Programs with tensor cores that a multiprocessor holds at once, by its shared memory."""

OVERLAP_GEMV, OVERLAP_DOT = 1 + 4, 1 + 2 + 4
"""How launches overlap on GPUs that support it; see `gemv_product.begin`."""


@dataclass(frozen=True)
class Product:
    """One of the products of a launch: out[:, out_at:][:, :N] = x[:, x_at:][:, :K] wᵀ, w [N, K], or as `Places`
    says."""

    N: int
    K: int
    stride_w: int
    stride_out: int
    x_at: int = 0
    out_at: int = 0
    stride_copy: int = 0


class Places(IntEnum):
    """Where a launch puts the columns of its products, as the kernel's SCATTER."""

    IN_ORDER = 0
    INDEXED = 1
    BOTH = 2
    """In order and without bias in `out`, and also indexed and with bias in a second tensor."""


def gemv_config(shape: GemmShape) -> GemmConfig:
    """The tile of a program: block_n rows of the weight, split_k · block_k of their elements a step.

    The fastest on an H100 for the shapes of an 8B model. One row: as much as possible of a weight row per step, or
    several short rows at once. More rows: tiles of 8 if tiles of 16 are too few for all multiprocessors, else of 16.
    On other GPUs the same, as far as it fits.
    """
    K, bits = shape.K, shape.bits
    whole = max(256, triton.next_power_of_2(K))
    if shape.M == 1:
        if whole > 4096 or (bits == 8 and whole > 2048):
            return GemmConfig(1, 1, 2048, num_stages=1)
        if whole > 2048:
            return GemmConfig(1, 1, 4096, num_stages=1)
        return GemmConfig(1, 4 * 16 // bits, whole, num_warps=min(4, whole // 256), num_stages=1)
    few = 16 * num_sms(shape.device)
    # AMD's matrix instructions have no tile of 8.
    if is_amd() or few < shape.N:
        tile = GemmConfig(16, 16, 128, 4, 4, 4) if K > 2048 else GemmConfig(16, 16, 128, 2, 2, 4)
    elif whole <= 512 and shape.M <= 16:
        return GemmConfig(16, 8, 256, whole // 256, whole // 256, 1)
    else:
        tile = GemmConfig(16, 8, 256, 2, 2, 4)
    stages = min(tile.num_stages, 2 if is_amd() else tile.num_stages, shared_memory(shape.device) // _step(tile, shape))
    if stages < 2:
        return replace(tile, block_k=tile.block_k // 2, num_stages=2)
    return replace(tile, num_stages=stages)


def _step(config: GemmConfig, shape: GemmShape) -> int:
    """Bytes per step of both operands; shared memory holds them once per stage."""
    return config.split_k * config.block_k * (config.block_n * shape.bits // 8 + rows_of_tile(shape.M) * 2)


CONFIGS = {
    ANY: (
        GemmConfig(1, 1, 1024, num_stages=1),
        GemmConfig(1, 2, 2048, num_stages=1),
        GemmConfig(1, 2, 4096, num_warps=8, num_stages=1),
        GemmConfig(1, 8, 1024, num_stages=1),
        GemmConfig(16, 16, 128, 4, 4, 4),
        GemmConfig(16, 16, 256, 2, 2, 3),
        GemmConfig(16, 32, 128, 2, 2, 3),
        GemmConfig(16, 32, 128, 4, 4, 3),
    ),
    # Tiles of 8 rows of the weight, because first factors have few rows and so few programs.
    "sm_90": (
        GemmConfig(16, 8, 128, 4, 4, 6),
        GemmConfig(16, 8, 128, 8, 8, 4),
        GemmConfig(16, 8, 256, 4, 4, 3),
        GemmConfig(16, 8, 512, 2, 4, 3),
        GemmConfig(16, 16, 64, 4, 4, 6),
    ),
}
"""Configs that are measured in addition to the cost model's: `block_m` 1 for one row, the others for more rows."""

MOST_ELEMENTS = 128
"""Most elements of a weight that a thread can hold, for one row."""


def supports(config: GemmConfig, shape: GemmShape) -> bool:
    if (config.block_m == 1) != (shape.M == 1):
        return False
    if shape.M == 1:
        return config.split_k == 1 and config.block_n * config.block_k <= 32 * config.num_warps * MOST_ELEMENTS
    wide_enough = config.block_n >= (16 if is_amd() else 8) and config.block_k >= 16
    return wide_enough and config.num_stages * _step(config, shape) <= shared_memory(shape.device)


GEMV = TunedKernel("gemv", gemv_config, CONFIGS, supports)


def rows_of_tile(T: int) -> int:
    """Rows of x in a tile: one for CUDA cores, else what tensor cores take."""
    return 1 if T == 1 else max(16, triton.next_power_of_2(T))


SECOND = "second phase"
"""Trait of a launch that follows one of ours and reads its weights before that one ends."""


def make_launch(
    T: int,
    stride_x: int,
    products: Sequence[Product],
    device: torch.device,
    dtype: torch.dtype,
    early: bool,
    bits: int = 16,
    into: Places = Places.IN_ORDER,
    scaled: bool = False,
    biased: bool = False,
    config: GemmConfig | None = None,
) -> Launch:
    """The launch of these products. It takes x, then of all products the weights, the scales, the indices, the biases,
    those that there are, the outputs, and the second outputs. `early`: the launch before is one of ours, and writes no
    weight. `dtype`: of x."""
    if config is None:
        traits = frozenset((SECOND,)) if early else frozenset()
        Ns, Ks = zip(*((p.N, p.K) for p in products), strict=True)
        config = GEMV.choose(GemmShape(T, Ns, Ks, dtype, device, bits, traits))
    # The kernel has a parameter per kind of tensor and member; missing members get a dummy.
    padded = [*products, *[Product(1, 1, 1, 1)] * (MOST_MEMBERS - len(products))]
    kinds = {"w": True, "scale": scaled, "index": into != Places.IN_ORDER, "bias": biased, "out": True}
    kinds["copy"] = into == Places.BOTH
    names = [f"{kind}{i}_ptr" for kind, given in kinds.items() if given for i in range(len(products))]
    programs = sum(triton.cdiv(p.N, config.block_n) for p in products)
    options = constants(T, [p.K for p in products], config, bits, device, early)
    # If not all programs of this launch fit the GPU, programs of the next one would keep them from starting.
    if T > 1 and early and programs > RESIDENT * num_sms(device):
        options["OVERLAP"] &= ~4
    return Launch(
        gemv_kernel,
        (programs,),
        (
            T,
            stride_x // ALIGNED,
            *(p.K for p in padded),
            *(p.N for p in padded),
            *(p.x_at for p in padded),
            *(p.out_at for p in padded),
            *(p.stride_w * bits // 128 for p in padded),
            *(p.stride_out for p in padded),
            *(p.stride_copy for p in padded),
        ),
        tensors=["x_ptr", *names],
        COUNT=len(products),
        SCATTER=int(into),
        SCALED=scaled,
        BIASED=biased,
        EARLY=early,
        **options,
    )


def constants(
    T: int, Ks: Sequence[int], config: GemmConfig, bits: int, device: torch.device, early: bool
) -> dict[str, object]:
    """Constants of the kernels, from rows, lengths of sums, config, bits per weight, and overlap of launches."""
    step, vector = config.block_k * config.split_k, 128 // bits
    # A second phase that prefetches its weights slows down the first: by 9 % of a pair of 16 rows.
    overlap = (OVERLAP_GEMV if T == 1 or early else OVERLAP_DOT) if has_tma(device) else 0
    return {
        "OVERLAP": overlap,
        "EVEN_K": all(K % step == 0 for K in Ks),
        "WHOLE_VECTORS": all(K % vector == 0 for K in Ks),
        "ONE_STEP": max(Ks) <= step,
        "UPCAST": INTERPRETED,
        "ACC": tl.float32,
        "BLOCK_T": rows_of_tile(T),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "SPLIT_K": config.split_k,
        "VECTOR": vector,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        **({"launch_pdl": True} if overlap else {}),
        # The assembler would spill registers to hold one more block; AMD's assembler has no such limit.
        **({"maxnreg": 255} if T > 1 and not is_amd() else {}),
    }
