"""Pairs of one input in three launches: all intermediates, split-K reduction, all outputs. For more rows than GEMV
kernels take, but too few for a library product per pair to fill a GPU. Tiles are copied by TMA."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.autotune.config import (
    ANY,
    SPLITTABLE,
    GemmConfig,
    GemmShape,
    TunedKernel,
    fits_shared_memory,
)
from sieve_kernels.common import tiles
from sieve_kernels.common.gemm import split_k_reduce
from sieve_kernels.common.gemm_kernel import swizzle_tile
from sieve_kernels.core import dispatch
from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.device import INTERPRETED, num_sms
from sieve_kernels.core.launch import TileLaunch
from sieve_kernels.core.plans import Plans
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.lowrank.torch_backend import linear
from sieve_kernels.lowrank.torch_backend_gpu import group as by_library
from sieve_kernels.pointwise.launches import begin
from sieve_kernels.pointwise.triton_columns import join_columns

MOST_MEMBERS = 3

MIN_SUMMED = 512
"""Fewest elements along K per split-K part."""

PAIR_RANK, PAIR_INPUTS, PAIR_OUTPUTS = 1024, 2048, 4096
"""Up to this rank and number of outputs, and from this number of inputs on, a pair with `dispatch.HALF_TILE_ROWS` rows
is computed in less time than the library's products need to start and end."""


def grouped_config(shape: GemmShape) -> GemmConfig:
    """The config: for few rows, tiles hold all of them and are narrow, so that every multiprocessor has one."""
    few = shape.M <= 64
    tile = GemmConfig(64, 64, 128, num_stages=4) if few else GemmConfig(128, 128, 64, num_warps=8, num_stages=4)
    if SPLITTABLE not in shape.traits:
        return tile
    count = triton.cdiv(shape.M, tile.block_m) * sum(triton.cdiv(N, tile.block_n) for N in shape.Ns)
    return replace(tile, split_k=max(1, min(num_sms(shape.device) // count, shape.K // MIN_SUMMED)))


CONFIGS = {
    ANY: (
        GemmConfig(64, 64, 64, num_stages=4),
        GemmConfig(64, 64, 128, split_k=2, num_stages=4),
        GemmConfig(64, 128, 64, num_stages=4),
        GemmConfig(128, 64, 64, num_stages=4),
        GemmConfig(128, 64, 64, split_k=2, num_stages=4),
        GemmConfig(128, 64, 128, num_warps=8),
        GemmConfig(128, 128, 64, split_k=2, num_warps=8, num_stages=4),
    )
}
"""What is measured beside the cost model's config."""


def _supports(config: GemmConfig, shape: GemmShape) -> bool:
    splits = config.split_k == 1 or (SPLITTABLE in shape.traits and config.split_k * config.block_k <= shape.K)
    return splits and config.block_m >= 64 and fits_shared_memory(config, shape)


GROUPED = TunedKernel("grouped", grouped_config, CONFIGS, _supports)


@triton.jit
def member_tile(
    a,  # descriptor of [M, K]
    b,  # descriptor of [N, K]
    out,  # descriptor of [M, N], or of its parts below one another
    row,
    col,
    K,
    split_rows,  # rows of a part of out
    SPLIT_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The tile at [row, col], in tiles, of a bᵀ or of this program's part of the sum."""
    part = tl.program_id(1)
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    begin = part * steps * BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    # Descriptors give zero beyond the edges.
    for k in range(begin, tl.minimum(begin + steps * BLOCK_K, K), BLOCK_K):
        left = a.load([row * BLOCK_M, k])
        right = b.load([col * BLOCK_N, k])
        acc = tiles.multiply(left, tl.trans(right), acc, PRECISION, UPCAST)
    out.store([part * split_rows + row * BLOCK_M, col * BLOCK_N], acc.to(OUT))


@triton.jit
def grouped_kernel(
    a0,  # descriptors of [M, K], one a member; of a missing member those of another
    a1,
    a2,
    b0,  # [N, K]
    b1,
    b2,
    out0,  # [M, N]
    out1,
    out2,
    M,
    N0,
    N1,
    N2,  # 0 of a missing member
    K0,
    K1,
    K2,
    split_rows,
    SPLIT_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    OUT: tl.constexpr,
    PDL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """out_i = a_i b_iᵀ for up to three members, their tiles side by side. Grid: (tiles, split_k)."""
    begin(PDL)
    # The tile's place among those of all members, row by row of tiles.
    first = tl.cdiv(N0, BLOCK_N)
    second = first + tl.cdiv(N1, BLOCK_N)
    row, col = swizzle_tile(tl.program_id(0), M, second + tl.cdiv(N2, BLOCK_N), BLOCK_M, GROUP_M)
    # Its member. One loop serves all members, because each loop would take shared memory of its own.
    K = K0
    a = a0
    b = b0
    out = out0
    if col >= second:
        K = K2
        a = a2
        b = b2
        out = out2
        col -= second
    elif col >= first:
        K = K1
        a = a1
        b = b1
        out = out1
        col -= first
    member_tile(a, b, out, row, col, K, split_rows, SPLIT_K, PRECISION, UPCAST, ACC, OUT, BLOCK_M, BLOCK_N, BLOCK_K)


def serves(x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], biases: Sequence[Tensor] | None) -> bool:
    """Whether these kernels support the group: enough rows, tiles that TMA can copy, no biases."""
    rows = x.numel() // max(1, x.shape[-1])
    if rows not in dispatch.SOME_ROWS_GPU or not 2 <= len(As) <= MOST_MEMBERS or biases is not None:
        return False
    x = as_rows(x)
    return all(map(tiles.has_descriptor, (x, *As, *Bs))) and all(B.shape[0] % 8 == 0 for B in Bs)


def prepare(
    x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], biases: None, permutations: Sequence[Tensor] | None = None
) -> Callable[..., list[Tensor]]:
    """A function of the same arguments to the outputs y_i [..., m_i], like `torch_backend_gpu.group`.

    x [..., n]; A_i [r_i, n]; B_i [m_i, r_i], or C_i [m_i - r_i, r_i] with permutations.
    """
    rows = as_rows(x)
    (T, n), dtype, device, compute = rows.shape, x.dtype, x.device, tiles.compute_dtype(x.dtype)
    ranks, widths, above = [A.shape[0] for A in As], [B.shape[0] for B in Bs], x.shape[:-1]
    # The configs of both launches; the first may split its sums over K.
    config = GROUPED.choose(GemmShape(T, tuple(ranks), (n,), dtype, device, traits=frozenset((SPLITTABLE,))))
    T_padded, split_k = triton.cdiv(T, config.block_m) * config.block_m, config.split_k
    starts, width = columns(ranks)
    acc_dtype = tiles.accumulator(dtype) if split_k > 1 else compute
    first = _launch(T, ranks, [n] * len(As), acc_dtype, dtype, config)
    second = _launch(
        T, widths, ranks, compute, dtype, GROUPED.choose(GemmShape(T, tuple(widths), tuple(ranks), dtype, device))
    )

    def run(x, As, Bs, biases, permutations=None):
        # All intermediates, side by side in z; split-K parts below one another.
        z = torch.empty((split_k * T_padded, width), dtype=acc_dtype, device=device)
        parts = [z[:, at : at + r] for at, r in zip(starts, ranks, strict=True)]
        first(*three([as_rows(x)] * len(As)), *three(As), *three(parts))
        z = split_k_reduce(z.view(split_k, T_padded, width), None, dtype) if split_k > 1 else z.to(dtype)
        # All outputs.
        zs = [z[:, at : at + r] for at, r in zip(starts, ranks, strict=True)]
        ys = [torch.empty((T, m), dtype=compute, device=device) for m in widths]
        second(*three(zs), *three(Bs), *three(ys))
        ys = [y.to(dtype) for y in ys]
        if permutations is not None:
            members = zip(zs, ys, permutations, strict=True)
            ys = [join_columns(z[:T], y, inverse(permutation), None) for z, y, permutation in members]
        return [y.view(*above, y.shape[1]) for y in ys]

    return run


def _prepare(
    x: Tensor,
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    permutations: Sequence[Tensor] | None = None,
) -> Callable[..., list[Tensor]]:
    if serves(x, As, Bs, biases):
        return prepare(x, As, Bs, biases, permutations)
    return by_library.prepare(x, As, Bs, biases, permutations)


group = Plans(_prepare)
"""`prepare`'s function; groups that these kernels do not support take the library's products."""


def _prepare_pair(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    (r, n), m, rows = A.shape, B.shape[0], x.numel() // max(1, x.shape[-1])
    fits = rows in dispatch.HALF_TILE_ROWS and r <= PAIR_RANK and n >= PAIR_INPUTS and m <= PAIR_OUTPUTS and m % 8 == 0
    if bias is not None or not fits or not all(map(tiles.has_descriptor, (as_rows(x), A, B))):
        return linear
    run = prepare(x, [A], [B], None)
    return lambda x, A, B, bias: run(x, [A], [B], None)[0]


pair = Plans(_prepare_pair)
"""y [..., m] = (x Aᵀ) Bᵀ of 33 to 64 rows x [..., n] and a small pair A [r, n], B [m, r]; of others by the library."""


def columns(ranks: Sequence[int]) -> tuple[list[int], int]:
    """First columns of the members in a joint matrix, each a multiple of 64, and the matrix's width."""
    starts = [0]
    for rank in ranks:
        starts.append(triton.cdiv(starts[-1] + rank, 64) * 64)
    return starts[:-1], starts[-1]


def three(members: Sequence) -> list:
    """Three members: the last one is repeated for missing ones."""
    return [*members, *[members[-1]] * (MOST_MEMBERS - len(members))]


def _launch(
    T: int, Ns: Sequence[int], Ks: Sequence[int], out: torch.dtype, dtype: torch.dtype, config: GemmConfig
) -> TileLaunch:
    """The launch of products a_i [T, K_i] · b_i [N_i, K_i] transposed; it takes three a, three b and three outputs."""
    missing = [0] * (MOST_MEMBERS - len(Ns))
    m, n, k = config.block_m, config.block_n, config.block_k
    height = triton.cdiv(T, m)
    return TileLaunch(
        grouped_kernel,
        (height * sum(triton.cdiv(N, n) for N in Ns), config.split_k),
        [(m, k)] * 3 + [(n, k)] * 3 + [(m, n)] * 3,
        (T, *Ns, *missing, *Ks, *missing, height * m),
        SPLIT_K=config.split_k,
        OUT=tiles.TRITON_DTYPES[out],
        PDL=not INTERPRETED,
        launch_pdl=not INTERPRETED,
        BLOCK_M=m,
        BLOCK_N=n,
        BLOCK_K=k,
        GROUP_M=config.group_m,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **tiles.arithmetic(dtype),
    )
