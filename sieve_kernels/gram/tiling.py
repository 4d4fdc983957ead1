"""The tiling of a Gram matrix, by a cost model: tiles of the result and split-K parts of the tokens.

The constants are an H100's (80 GB HBM3, CUDA 13, Triton 3.6, bf16, 8192 and 16384 tokens).
"""

from dataclasses import dataclass
from functools import lru_cache

from triton import cdiv

from sieve_kernels.autotune.config import ANY, GemmConfig, GemmShape, TunedKernel, fits_shared_memory
from sieve_kernels.core.device import INTERPRETED, num_sms

BLOCK_T = 64
"""Tokens per step."""

MAX_WORKSPACE = 1 << 28
"""Most bytes of the workspace for split-K parts."""

GROUP_M = 6
"""Columns of superblocks that are computed together, for L2."""

SYMMETRIC, SPLIT_TERMS = "symmetric", "3 terms"
"""Traits of a product: of x with itself; of float32 numbers, as three bfloat16 ones."""


def num_programs(config: GemmConfig, n: int, m: int, symmetric: bool) -> int:
    """Programs per split-K part, for a result [n, m] in tiles [block_m, block_n]."""
    if not symmetric:
        return cdiv(n, config.block_m) * cdiv(m, config.block_n)
    side, halves = cdiv(n, config.block_n), config.block_n // config.block_m
    return side * (side - 1) // 2 * halves + side * (halves * (halves + 1) // 2)


@dataclass(frozen=True)
class Kind:
    """A tile size and its costs, in microseconds of a multiprocessor."""

    block_n: int
    num_stages: int
    programs_per_sm: int  # programs on a multiprocessor
    step: float  # of 64 tokens, of as many programs as fit
    alone: float  # a step of a program that has the multiprocessor to itself
    around: float  # before the first step and after the last

    def config(self, split_k: int = 1) -> GemmConfig:
        return GemmConfig(128, self.block_n, BLOCK_T, split_k, 8, self.num_stages, GROUP_M)


WIDE = Kind(256, 4, 1, 0.755, 0.755, 5)
SQUARE = Kind(128, 4, 1, 0.42, 0.42, 3)
PAIRED = Kind(128, 3, 2, 0.74, 0.47, 3)
"""With three stages two programs fit a multiprocessor, and one multiplies while the other writes. Only for split
products: tiles that are added to the result need more shared memory."""


@lru_cache(maxsize=1024)
def choose_tiling(T: int, n: int, m: int, symmetric: bool, terms: int, num_sms: int) -> GemmConfig:
    """The tiling with the least estimated time for T tokens, in `terms` terms, and a result [n, m]."""
    most = max(1, min(8, cdiv(T, 256), MAX_WORKSPACE // (4 * n * m)))
    kinds = (SQUARE,) if terms > 1 else (WIDE, SQUARE, PAIRED)
    choices = [(kind, split_k) for kind in kinds for split_k in range(1, most + 1) if kind != PAIRED or split_k > 1]
    kind, split_k = min(choices, key=lambda choice: microseconds(*choice, T, n, m, symmetric, terms, num_sms))
    return kind.config(split_k)


def microseconds(kind: Kind, split_k: int, T: int, n: int, m: int, symmetric: bool, terms: int, num_sms: int) -> float:
    """Estimated time of the product and of adding it to the result."""
    # Rounds of programs times the steps of each.
    programs = num_programs(kind.config(), n, m, symmetric)
    if symmetric and kind == WIDE:
        # Squares on the diagonal, three per superblock, are half the work of a tile each, and come last.
        side = cdiv(n, kind.block_n)
        programs -= 3 * side - cdiv(3 * side, 2)
    programs *= split_k
    step = kind.alone if programs <= num_sms else kind.step
    steps = cdiv(cdiv(T, split_k), BLOCK_T) * (6 if terms > 1 else 1)
    product = cdiv(programs, num_sms * kind.programs_per_sm) * (steps * step + kind.around)
    # The traffic of the result and of parts (megabytes, TB/s) partly overlaps with products.
    area = 4e-6 * n * m
    result = area * 1.5 / 2.2 if symmetric else area * 2 / 2.2
    if split_k == 1:
        return product + 0.7 * result
    parts = area * split_k * (0.5 if symmetric else 1)
    return product + 0.8 * (3 + result + 2 * parts / (6.5 if parts < 20 else 3.0))


def _cost_model(shape: GemmShape) -> GemmConfig:
    terms, symmetric = 3 if SPLIT_TERMS in shape.traits else 1, SYMMETRIC in shape.traits
    return choose_tiling(shape.K, shape.M, shape.N, symmetric, terms, num_sms(shape.device))


CONFIGS = {
    ANY: (
        *(WIDE.config(split_k) for split_k in (1, 2, 3, 4)),
        *(SQUARE.config(split_k) for split_k in (1, 2, 3, 4)),
        *(PAIRED.config(split_k) for split_k in (2, 3, 4, 6, 8)),
    )
}
"""Configs that are measured in addition to the cost model's."""


def _supports(config: GemmConfig, shape: GemmShape) -> bool:
    """Whether tiles are squares or two of them, one square of terms, and the workspace has room for the parts."""
    halves = config.block_n // config.block_m
    fits = INTERPRETED or fits_shared_memory(config, shape)
    room = config.split_k == 1 or 4 * shape.M * shape.N * config.split_k <= MAX_WORKSPACE
    return fits and room and halves in ((1,) if SPLIT_TERMS in shape.traits else (1, 2))


GRAM_TMA = TunedKernel("gram_tma", _cost_model, CONFIGS, _supports)
