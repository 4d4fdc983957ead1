"""Gram matrices of 16-bit tokens on GPUs with TMA: Hopper and later.

The triangle is cut into rectangles of [BLOCK_M, BLOCK_N] strictly above the diagonal of superblocks of side BLOCK_N,
and into squares of side BLOCK_M on it, so that hardly more than the triangle is multiplied. A program transposes its
tile in registers and writes it twice, in place and mirrored, whole rows each. Where the tiles alone would leave
multiprocessors idle the sum over tokens is split (split-K): each part goes to a workspace, and a second launch adds the
parts in a fixed order, so that results are deterministic.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sieve_kernels.autotune.config import GemmConfig, GemmShape
from sieve_kernels.common import tiles
from sieve_kernels.core.device import INTERPRETED, has_tma, shared_memory
from sieve_kernels.core.launch import Launch, TileLaunch
from sieve_kernels.core.plans import Plans
from sieve_kernels.gram.tiling import BLOCK_T, GRAM_TMA, SPLIT_TERMS, SYMMETRIC, num_programs
from sieve_kernels.gram.triton_terms import TERMS, split_terms


@triton.jit
def _pair_column(q):
    """Column of the q-th pair row < column, counted column by column: the largest c with c (c - 1) / 2 ≤ q."""
    c = ((tl.sqrt(8.0 * q + 1.0) + 1.0) * 0.5).to(tl.int32)
    # The GPU's square root is approximate: at most one off.
    c = tl.where(c * (c - 1) // 2 > q, c - 1, c)
    return tl.where(c * (c + 1) // 2 <= q, c + 1, c)


@triton.jit
def _pair(q, side, GROUP_M: tl.constexpr):
    """Row and column of the q-th pair row < column < side.

    Pairs come in groups of GROUP_M columns, row by row inside a group, so that the panels of x that programs share at a
    time are few and still in L2.
    """
    first = _pair_column(q) // GROUP_M * GROUP_M
    q -= first * (first - 1) // 2
    width = tl.maximum(tl.minimum(side - first, GROUP_M), 1)
    beside = first * width  # pairs of the group's columns with rows before it
    col = _pair_column(tl.maximum(q - beside, 0))
    row = tl.where(q < beside, q // width, first + (q - beside) - col * (col - 1) // 2)
    return row, tl.where(q < beside, first + q % width, first + col)


@triton.jit
def _multiply(x_desc, y_desc, row, col, begin, end, BLOCK_M, BLOCK_N, BLOCK_T: tl.constexpr, UPCAST: tl.constexpr):
    """x[begin:end, row:row + BLOCK_M]ᵀ y[begin:end, col:col + BLOCK_N]; what is beyond the edges counts as zero."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(begin, end, BLOCK_T):
        a = x_desc.load([start, row])  # [BLOCK_T, BLOCK_M]
        b = y_desc.load([start, col])  # [BLOCK_T, BLOCK_N]
        acc = tiles.multiply(tl.trans(a), b, acc, "ieee", UPCAST)
    return acc


@triton.jit
def _multiply_terms(
    x_desc, y_desc, row, col, begin, end, rows, BLOCK_M, BLOCK_N, BLOCK_T: tl.constexpr, UPCAST: tl.constexpr
):
    """`_multiply` of float32 numbers, x [3 · rows, n] and y [3 · rows, m] in terms: six products, small ones first."""
    steps = tl.cdiv(end - begin, BLOCK_T)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, 5 * steps):
        # Terms 0, 2, 1, 0, 1 of x and 2, 0, 1, 1, 0 of y, two bits each.
        shift = step // steps * 2
        token = begin + step % steps * BLOCK_T
        a = x_desc.load([((0b0100011000 >> shift) & 3) * rows + token, row])
        b = y_desc.load([((0b0001010010 >> shift) & 3) * rows + token, col])
        acc = tiles.multiply(tl.trans(a), b, acc, "ieee", UPCAST)
    # Where an element is infinite, its first term alone determines the sum.
    acc = tl.where(tl.abs(acc) < float("inf"), acc, 0.0)
    # Tensor cores cut where they sum, which over thousands of tokens would show in float32. So each step's product is
    # added outside of them; subtracted, as Triton makes one operation of a product and the addition of it.
    negated = -acc
    for start in range(begin, end, BLOCK_T):
        a = x_desc.load([start, row])
        b = y_desc.load([start, col])
        product = tiles.multiply(tl.trans(a), b, tl.zeros_like(acc), "ieee", UPCAST)
        negated -= product
    return -negated


@triton.jit
def _halves(tile):
    """The left and the right half of a tile."""
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _write(out_desc, tile, row, col, SYMMETRIC: tl.constexpr, SPLIT_K: tl.constexpr, ON_DIAGONAL: tl.constexpr):
    """out[row:, col:] += tile [BLOCK_M, BLOCK_M], and its mirror image if SYMMETRIC; if SPLIT_K out = tile."""
    if SPLIT_K:
        # In halves: they fit the operands' shared memory, so that two programs fit a multiprocessor.
        left, right = _halves(tile)
        out_desc.store([row, col], left)
        out_desc.store([row, col + left.shape[1]], right)
    else:
        tile += out_desc.load([row, col])
        if not SYMMETRIC:
            out_desc.store([row, col], tile)
        else:
            mirrored = tl.trans(tile)
            if ON_DIAGONAL and row == col:
                at = tl.arange(0, tile.shape[0])
                out_desc.store([row, col], tl.where(at[:, None] <= at[None, :], tile, mirrored))
            else:
                out_desc.store([row, col], tile)
                out_desc.store([col, row], mirrored)


@triton.jit
def _write_halves(out_desc, tile, row, col, SYMMETRIC: tl.constexpr, SPLIT_K: tl.constexpr):
    """`_write` of a tile [BLOCK_M, 2 BLOCK_M] above the diagonal."""
    left, right = _halves(tile)
    _write(out_desc, left, row, col, SYMMETRIC, SPLIT_K, False)
    _write(out_desc, right, row, col + left.shape[1], SYMMETRIC, SPLIT_K, False)


@triton.jit
def gram_tma_kernel(
    x_desc,  # [T, n], or terms [TERMS · term_rows, n]; boxes of [BLOCK_T, BLOCK_M]
    y_desc,  # [T, m], or terms; boxes of [BLOCK_T, BLOCK_N]; x's if SYMMETRIC
    out_desc,  # [n, m], boxes of [BLOCK_M, BLOCK_M]; if SPLIT_K the workspace [split_k · split_rows, m], half as wide
    T,
    n,
    m,
    split_size,  # tokens of a part of the sum, a multiple of BLOCK_T
    split_rows,
    term_rows,
    SYMMETRIC: tl.constexpr,
    TERMS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    DEPENDENT: tl.constexpr,  # the next launch waits for this one by itself
    UPCAST: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # BLOCK_M, or twice it; BLOCK_M of terms
    BLOCK_T: tl.constexpr,
):
    """out += xᵀ y, or this part of xᵀ y to the workspace. Grid: (tiles, split_k)."""
    if DEPENDENT:
        gdc_launch_dependents()
    # The tokens of this program's part of the sum, and where the workspace has it.
    pid = tl.program_id(0)
    begin = tl.program_id(1) * split_size
    end = tl.minimum(begin + split_size, T)
    base = tl.program_id(1) * split_rows
    # Which tile: of a symmetric result those above the diagonal first, and then those on it.
    HALVES: tl.constexpr = BLOCK_N // BLOCK_M
    if SYMMETRIC:
        side = tl.cdiv(n, BLOCK_N)  # in superblocks [BLOCK_N, BLOCK_N]
        above = side * (side - 1) // 2 * HALVES  # tiles
        i, j = _pair(tl.minimum(pid, above) // HALVES, side, GROUP_M)
        row = i * BLOCK_N + pid % HALVES * BLOCK_M
        col = j * BLOCK_N
        if HALVES == 1:
            # One path for both kinds of tiles: ptxas merges two paths with equal ends by waiting after every product.
            row = tl.where(pid < above, row, (pid - above) * BLOCK_M)
            col = tl.where(pid < above, col, row)
    else:
        down = tl.cdiv(n, BLOCK_M)
        group = pid // (GROUP_M * down) * GROUP_M
        width = tl.minimum(tl.cdiv(m, BLOCK_N) - group, GROUP_M)
        row = pid % (GROUP_M * down) // width * BLOCK_M
        col = (group + pid % (GROUP_M * down) % width) * BLOCK_N
        above = tl.num_programs(0)
    # The product, by the number of terms and the kind of tile.
    if TERMS == 3:
        acc = _multiply_terms(x_desc, y_desc, row, col, begin, end, term_rows, BLOCK_M, BLOCK_N, BLOCK_T, UPCAST)
        _write(out_desc, acc, base + row, col, SYMMETRIC, SPLIT_K, True)
    elif HALVES == 1:
        acc = _multiply(x_desc, y_desc, row, col, begin, end, BLOCK_M, BLOCK_N, BLOCK_T, UPCAST)
        _write(out_desc, acc, base + row, col, SYMMETRIC, SPLIT_K, True)
    elif pid < above:
        tile = _multiply(x_desc, y_desc, row, col, begin, end, BLOCK_M, BLOCK_N, BLOCK_T, UPCAST)
        _write_halves(out_desc, tile, base + row, col, SYMMETRIC, SPLIT_K)
    elif SYMMETRIC:
        # The superblocks on the diagonal hold three squares each: two on it and one beside them.
        which = (pid - above) % 3
        corner = (pid - above) // 3 * BLOCK_N
        row = corner + which // 2 * BLOCK_M
        col = corner + (which + 1) // 2 * BLOCK_M
        square = _multiply(x_desc, x_desc, row, col, begin, end, BLOCK_M, BLOCK_M, BLOCK_T, UPCAST)
        _write(out_desc, square, base + row, col, SYMMETRIC, SPLIT_K, True)


@triton.jit
def split_k_reduce_kernel(
    parts_ptr,  # [split_k, rows, m], rows of contiguous elements
    out_ptr,  # [n, m], rows of contiguous elements
    n,
    m,
    rows,
    stride_s,
    stride_on,
    SYMMETRIC: tl.constexpr,
    DEPENDENT: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out += the parts, in order, and their mirror image if SYMMETRIC. Grid: (blocks of [BLOCK, BLOCK],)."""
    # Which block of the result.
    pid = tl.program_id(0)
    if SYMMETRIC:
        i, j = _pair(pid, tl.cdiv(m, BLOCK) + 1, 1)
        j -= 1  # now on and above the diagonal
    else:
        i = pid // tl.cdiv(m, BLOCK)
        j = pid % tl.cdiv(m, BLOCK)
    r = (i * BLOCK + tl.arange(0, BLOCK))[:, None].to(tl.int64)
    c = (j * BLOCK + tl.arange(0, BLOCK))[None, :].to(tl.int64)
    inside = (r < n) & (c < m)
    # The parts, added in order to what is there.
    at = out_ptr + r * stride_on + c
    tile = tl.load(at, mask=inside, other=0.0)
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    if DEPENDENT:
        # The previous launch writes the workspace but not `out`.
        gdc_wait()
    for s in tl.static_range(SPLIT_K):
        acc += tl.load(parts_ptr + (tl.cast(s, tl.int64) * rows + r) * stride_s + c, mask=inside, other=0.0)
    tile += acc
    # In place, and mirrored.
    if SYMMETRIC:
        mirrored = tl.trans(tile)
        if i == j:
            tl.store(at, tl.where(r <= c, tile, mirrored), mask=inside)
        else:
            tl.store(at, tile, mask=inside)
            mirrored_r = (j * BLOCK + tl.arange(0, BLOCK))[:, None].to(tl.int64)
            mirrored_c = (i * BLOCK + tl.arange(0, BLOCK))[None, :].to(tl.int64)
            inside = (mirrored_r < n) & (mirrored_c < m)
            tl.store(out_ptr + mirrored_r * stride_on + mirrored_c, mirrored, mask=inside)
    else:
        tl.store(at, tile, mask=inside)


SHARED = 200 * 1024
"""Bytes of shared memory that a block must be allowed: four stages of the largest tiles, and their barriers."""


def can_serve(out: Tensor, x: Tensor, weight: Tensor | None) -> bool:
    """Whether TMA can write out [n, m], the GPU has room for the tiles, and tokens such as x are or become 16-bit."""
    if not (weight is None or weight.dtype == torch.bool) or x.dtype == torch.float64 or not has_tma(x.device):
        return False
    rows_fit = out.stride(1) == 1 and out.stride(0) >= out.shape[1]
    aligned = rows_fit and out.stride(0) % 4 == 0 and out.data_ptr() % 16 == 0
    if out.dtype != torch.float32 or not aligned or min(out.shape) < 64:
        return False
    return INTERPRETED or shared_memory(x.device) >= SHARED


MOST_COPIED = 1 << 29
"""Most bytes of terms that are made at a time."""


def prepare(out: Tensor, x: Tensor, y: Tensor, mask: Tensor | None, symmetric: bool) -> Callable[..., None]:
    """The function that adds xᵀ y over the unmasked tokens to out [n, m], for arguments of this kind.

    x [T, n], y [T, m], mask [T].

    If symmetric, y is x, and only the upper triangle of `out` is read.
    """
    (T, n), m = x.shape, y.shape[1]
    if mask is None and tiles.has_descriptor(x) and tiles.has_descriptor(y):
        return _prepare_terms(out, x, y, T, 1, symmetric)
    terms = TERMS if x.dtype == torch.float32 else 1
    at_once = max(4096, MOST_COPIED // (2 * terms * (n if symmetric else n + m)))

    def run(out, x, y, mask, symmetric):
        for begin in range(0, T, at_once):
            part = slice(begin, begin + at_once)
            kept = None if mask is None else mask[part]
            tokens = min(at_once, T - begin)
            rows = triton.cdiv(tokens, BLOCK_T) * BLOCK_T
            with tiles.on_device(x):
                x_terms = split_terms(x[part], kept, rows)
                y_terms = x_terms if symmetric else split_terms(y[part], kept, rows)
            _accumulate_terms_(out, x_terms, y_terms, tokens, terms, symmetric)

    return run


def _prepare_terms(
    out: Tensor,
    x: Tensor,
    y: Tensor,
    T: int,
    terms: int,
    symmetric: bool,
    config: GemmConfig | None = None,
) -> Callable[..., None]:
    """`prepare` for T tokens in so many terms, x [terms · rows, n] and y [terms · rows, m], that TMA can read."""
    n, m = out.shape
    if config is None:
        traits = [SYMMETRIC] * symmetric + [SPLIT_TERMS] * (terms > 1)
        config = GRAM_TMA.choose(GemmShape(n, (m,), (T,), x.dtype, x.device, traits=frozenset(traits)))
    block_m, block_n, block_t = config.block_m, config.block_n, config.block_k
    # The sum, in as many parts as there are after rounding to whole steps. Each begins at a tile of its own: a tile
    # that reaches beyond the last row must not reach into the next.
    split_size = triton.cdiv(triton.cdiv(T, config.split_k), block_t) * block_t
    split_k = triton.cdiv(T, split_size)
    split_rows, width = triton.cdiv(n, block_n) * block_n, triton.cdiv(m, 4) * 4
    dependent = split_k > 1 and not INTERPRETED
    multiply = TileLaunch(
        gram_tma_kernel,
        (num_programs(config, n, m, symmetric), split_k),
        ((block_t, block_m), (block_t, block_n), (block_m, block_m // 2 if split_k > 1 else block_m)),
        (T, n, m, split_size, split_rows, x.shape[0] // terms),
        SYMMETRIC=symmetric,
        TERMS=terms,
        SPLIT_K=split_k > 1,
        DEPENDENT=dependent,
        UPCAST=INTERPRETED,
        GROUP_M=config.group_m,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_T=block_t,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if split_k == 1:
        return lambda out, x, y, *_: multiply(x, y, out)
    # The launch that adds the parts.
    block = 16 if n * m <= 1 << 20 else 32
    num_tiles_n = triton.cdiv(m, block)
    reduce = Launch(
        split_k_reduce_kernel,
        (num_tiles_n * (num_tiles_n + 1) // 2 if symmetric else triton.cdiv(n, block) * num_tiles_n,),
        (n, m, split_rows, width, out.stride(0)),
        SYMMETRIC=symmetric,
        DEPENDENT=dependent,
        SPLIT_K=split_k,
        BLOCK=block,
        num_warps=4,
        **({"launch_pdl": True} if dependent else {}),
    )

    def run(out, x, y, *_):
        parts = out.new_empty((split_k * split_rows, width))
        multiply(x, y, parts)
        reduce(parts, out)

    return run


_accumulate_terms_ = Plans(_prepare_terms)
