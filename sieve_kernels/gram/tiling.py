"""How the product of a Gram matrix is cut into programs: tiles of the result and parts of the tokens, by a cost model.

The constants are an H100's (80 GB HBM3, CUDA 13, Triton 3.6, bf16, 8192 and 16384 tokens).
"""

from dataclasses import dataclass
from functools import lru_cache

from triton import cdiv

from sieve_kernels.autotune.config import ANY, GemmConfig, GemmShape, TunedKernel, fits_shared_memory
from sieve_kernels.core.device import INTERPRETED, num_sms

BLOCK_T = 64
"""Tokens of a step."""

MAX_WORKSPACE = 1 << 28
"""Bytes of the workspace for the parts of split sums."""

GROUP_M = 6
"""Superblocks side by side that are taken together."""

SYMMETRIC, SPLIT_TERMS = "symmetric", "3 terms"
"""Traits of a product: of x with itself; of float32 numbers, as three bfloat16 ones."""


def num_programs(config: GemmConfig, n: int, m: int, symmetric: bool) -> int:
    """Programs of a part of the sum, for a result [n, m] in tiles [block_m, block_n]."""
    if not symmetric:
        return cdiv(n, config.block_m) * cdiv(m, config.block_n)
    side, halves = cdiv(n, config.block_n), config.block_n // config.block_m
    return side * (side - 1) // 2 * halves + side * (halves * (halves + 1) // 2)


@dataclass(frozen=True)
class Kind:
    """Tiles of a size and what they cost: microseconds of a multiprocessor."""

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
"""Three stages leave room for two programs, of which one multiplies while the other writes; of split products only, as
tiles that are added to the result need more room."""


@lru_cache(maxsize=1024)
def choose_tiling(T: int, n: int, m: int, symmetric: bool, terms: int, num_sms: int) -> GemmConfig:
    """The tiling of least estimated time for T tokens, in so many terms, and a result [n, m]."""
    most = max(1, min(8, cdiv(T, 256), MAX_WORKSPACE // (4 * n * m)))
    kinds = (SQUARE,) if terms > 1 else (WIDE, SQUARE, PAIRED)
    choices = [(kind, split_k) for kind in kinds for split_k in range(1, most + 1) if kind != PAIRED or split_k > 1]
    kind, split_k = min(choices, key=lambda choice: microseconds(*choice, T, n, m, symmetric, terms, num_sms))
    return kind.config(split_k)


def microseconds(kind: Kind, split_k: int, T: int, n: int, m: int, symmetric: bool, terms: int, num_sms: int) -> float:
    """Estimated time of the product and of adding it to the result."""
    # Rounds of programs, each of so many steps.
    programs = num_programs(kind.config(), n, m, symmetric)
    if symmetric and kind == WIDE:
        # Squares on the diagonal, three to a superblock, are half of the work of a tile and come last.
        side = cdiv(n, kind.block_n)
        programs -= 3 * side - cdiv(3 * side, 2)
    programs *= split_k
    step = kind.alone if programs <= num_sms else kind.step
    steps = cdiv(cdiv(T, split_k), BLOCK_T) * (6 if terms > 1 else 1)
    product = cdiv(programs, num_sms * kind.programs_per_sm) * (steps * step + kind.around)
    # Of the traffic of the result and of parts (megabytes, TB/s) some hides behind products.
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
"""What is measured beside the cost model's config."""


def _supports(config: GemmConfig, shape: GemmShape) -> bool:
    """Whether tiles are squares or two of them, one square of terms, and the workspace has room for the parts."""
    halves = config.block_n // config.block_m
    fits = INTERPRETED or fits_shared_memory(config, shape)
    room = config.split_k == 1 or 4 * shape.M * shape.N * config.split_k <= MAX_WORKSPACE
    return fits and room and halves in ((1,) if SPLIT_TERMS in shape.traits else (1, 2))


GRAM_TMA = TunedKernel("gram_tma", _cost_model, CONFIGS, _supports)
