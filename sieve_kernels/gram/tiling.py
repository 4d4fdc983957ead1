"""How the product of a Gram matrix is cut into programs: tiles of the result and shares of the tokens, by a cost model.

The constants are an H100's (80 GB HBM3, CUDA 13, Triton 3.6, bf16, 8192 and 16384 tokens).
"""

from dataclasses import dataclass
from functools import lru_cache

from triton import cdiv

BLOCK_T = 64
"""Tokens of a step."""

MAX_WORKSPACE = 1 << 28
"""Bytes of the workspace for shares."""


@dataclass(frozen=True)
class Tiling:
    """Tiles [block_n, block_m] of the result, walked in steps of block_t tokens; the tokens in split_k shares."""

    block_n: int
    block_m: int
    block_t: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    group: int = 6  # superblocks side by side that are taken together

    def programs(self, n: int, m: int, symmetric: bool) -> int:
        """Programs of a share of a result [n, m]."""
        if not symmetric:
            return cdiv(n, self.block_n) * cdiv(m, self.block_m)
        side, halves = cdiv(n, self.block_m), self.block_m // self.block_n
        return side * (side - 1) // 2 * halves + side * (halves * (halves + 1) // 2)


@dataclass(frozen=True)
class Kind:
    """Tiles of a size and what they cost: microseconds of a multiprocessor."""

    block_m: int
    num_stages: int
    together: int  # programs on a multiprocessor
    step: float  # of 64 tokens, of as many programs as there are together
    alone: float  # a step of a program that has the multiprocessor to itself
    around: float  # before the first step and after the last


WIDE = Kind(256, 4, 1, 0.755, 0.755, 5)
SQUARE = Kind(128, 4, 1, 0.42, 0.42, 3)
PAIRED = Kind(128, 3, 2, 0.74, 0.47, 3)
"""Three stages leave room for two programs, of which one multiplies while the other writes; of split products only, as
tiles that are added to the result need more room."""


@lru_cache(maxsize=1024)
def choose_tiling(T: int, n: int, m: int, symmetric: bool, terms: int, num_sms: int) -> Tiling:
    """The tiling of least estimated time for T tokens, in so many terms, and a result [n, m]."""
    most = max(1, min(8, cdiv(T, 256), MAX_WORKSPACE // (4 * n * m)))
    kinds = (SQUARE,) if terms > 1 else (WIDE, SQUARE, PAIRED)
    choices = [(kind, split_k) for kind in kinds for split_k in range(1, most + 1) if kind != PAIRED or split_k > 1]
    kind, split_k = min(choices, key=lambda choice: microseconds(*choice, T, n, m, symmetric, terms, num_sms))
    return Tiling(128, kind.block_m, BLOCK_T, num_warps=8, num_stages=kind.num_stages, split_k=split_k)


def microseconds(kind: Kind, split_k: int, T: int, n: int, m: int, symmetric: bool, terms: int, num_sms: int) -> float:
    """Estimated time of the product and of adding it to the result."""
    programs = Tiling(128, kind.block_m, BLOCK_T, 8, kind.num_stages).programs(n, m, symmetric)
    if symmetric and kind == WIDE:
        # Squares on the diagonal, three to a superblock, are half of the work of a tile and come last.
        side = cdiv(n, kind.block_m)
        programs -= 3 * side - cdiv(3 * side, 2)
    programs *= split_k
    step = kind.alone if programs <= num_sms else kind.step
    steps = cdiv(cdiv(T, split_k), BLOCK_T) * (6 if terms > 1 else 1)
    product = cdiv(programs, num_sms * kind.together) * (steps * step + kind.around)
    # Of the traffic of the result and the shares (megabytes, TB/s) a part hides behind products.
    area = 4e-6 * n * m
    result = area * 1.5 / 2.2 if symmetric else area * 2 / 2.2
    if split_k == 1:
        return product + 0.7 * result
    shares = area * split_k * (0.5 if symmetric else 1)
    return product + 0.8 * (3 + result + 2 * shares / (6.5 if shares < 20 else 3.0))
