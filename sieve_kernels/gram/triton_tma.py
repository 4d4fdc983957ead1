"""Gram matrices of 16-bit tokens on GPUs that copy tiles by themselves (TMA): Hopper and later.

The triangle is cut into rectangles of [BLOCK_N, BLOCK_M] strictly above the diagonal of superblocks of side BLOCK_M,
and into squares of side BLOCK_N on it, so that hardly more than the triangle is multiplied. A program turns its tile in
registers and writes it twice, in place and mirrored, whole rows each. Where the tiles alone would leave processors idle
the tokens are split: each share of the product goes to a workspace, and a second launch adds the shares in a fixed
order, so that the same input gives the same bits.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sieve_kernels.common import tiles
from sieve_kernels.core import dispatch
from sieve_kernels.core.launch import Launch, TileLaunch
from sieve_kernels.core.plans import Plans
from sieve_kernels.gram.tiling import BLOCK_T, choose_tiling
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
def _multiply(x_desc, y_desc, row, col, begin, end, BLOCK_N, BLOCK_M, BLOCK_T: tl.constexpr, UPCAST: tl.constexpr):
    """x[begin:end, row:row + BLOCK_N]ᵀ y[begin:end, col:col + BLOCK_M]; what is beyond the edges counts as zero."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in range(begin, end, BLOCK_T):
        a = x_desc.load([start, row])  # [BLOCK_T, BLOCK_N]
        b = y_desc.load([start, col])  # [BLOCK_T, BLOCK_M]
        acc = tiles.multiply(tl.trans(a), b, acc, "ieee", UPCAST)
    return acc


@triton.jit
def _multiply_terms(
    x_desc, y_desc, row, col, begin, end, rows, BLOCK_N, BLOCK_M, BLOCK_T: tl.constexpr, UPCAST: tl.constexpr
):
    """`_multiply` of float32 numbers, x [3 · rows, n] and y [3 · rows, m] in terms: six products, small ones first."""
    steps = tl.cdiv(end - begin, BLOCK_T)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for step in range(0, 5 * steps):
        # Terms 0, 2, 1, 0, 1 of x and 2, 0, 1, 1, 0 of y, two bits each.
        shift = step // steps * 2
        token = begin + step % steps * BLOCK_T
        a = x_desc.load([((0b0100011000 >> shift) & 3) * rows + token, row])
        b = y_desc.load([((0b0001010010 >> shift) & 3) * rows + token, col])
        acc = tiles.multiply(tl.trans(a), b, acc, "ieee", UPCAST)
    # Where a number is infinite its first term alone says what the sum is.
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
    """out[row:, col:] += tile [BLOCK_N, BLOCK_N], and its mirror image if SYMMETRIC; if SPLIT_K out = tile."""
    if SPLIT_K:
        # In halves: then the shared memory of the operands serves again, and two programs fit on a processor.
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
    """`_write` of a tile [BLOCK_N, 2 BLOCK_N] above the diagonal."""
    left, right = _halves(tile)
    _write(out_desc, left, row, col, SYMMETRIC, SPLIT_K, False)
    _write(out_desc, right, row, col + left.shape[1], SYMMETRIC, SPLIT_K, False)


@triton.jit
def gram_tma_kernel(
    x_desc,  # [T, n], or terms [TERMS · term_rows, n]; boxes of [BLOCK_T, BLOCK_N]
    y_desc,  # [T, m], or terms; boxes of [BLOCK_T, BLOCK_M]; x's if SYMMETRIC
    out_desc,  # [n, m], boxes of [BLOCK_N, BLOCK_N]; if SPLIT_K the workspace [split_k · share_rows, m], half as wide
    T,
    n,
    m,
    share,  # tokens of a share, a multiple of BLOCK_T
    split_rows,
    term_rows,
    SYMMETRIC: tl.constexpr,
    TERMS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    DEPENDENT: tl.constexpr,  # the next launch waits for this one by itself
    UPCAST: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,  # BLOCK_N, or twice it; BLOCK_N of terms
    BLOCK_T: tl.constexpr,
):
    """out += xᵀ y, or this share of xᵀ y to the workspace. Grid: (tiles, shares)."""
    if DEPENDENT:
        gdc_launch_dependents()
    pid = tl.program_id(0)
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, T)
    base = tl.program_id(1) * split_rows
    HALVES: tl.constexpr = BLOCK_M // BLOCK_N
    if SYMMETRIC:
        side = tl.cdiv(n, BLOCK_M)  # in superblocks [BLOCK_M, BLOCK_M]
        above = side * (side - 1) // 2 * HALVES  # tiles
        i, j = _pair(tl.minimum(pid, above) // HALVES, side, GROUP_M)
        row = i * BLOCK_M + pid % HALVES * BLOCK_N
        col = j * BLOCK_M
        if HALVES == 1:
            # One path for both kinds of tiles: of two that end alike ptxas makes one by waiting after every product.
            row = tl.where(pid < above, row, (pid - above) * BLOCK_N)
            col = tl.where(pid < above, col, row)
    else:
        down = tl.cdiv(n, BLOCK_N)
        group = pid // (GROUP_M * down) * GROUP_M
        width = tl.minimum(tl.cdiv(m, BLOCK_M) - group, GROUP_M)
        row = pid % (GROUP_M * down) // width * BLOCK_N
        col = (group + pid % (GROUP_M * down) % width) * BLOCK_M
        above = tl.num_programs(0)
    if TERMS == 3:
        acc = _multiply_terms(x_desc, y_desc, row, col, begin, end, term_rows, BLOCK_N, BLOCK_M, BLOCK_T, UPCAST)
        _write(out_desc, acc, base + row, col, SYMMETRIC, SPLIT_K, True)
    elif HALVES == 1:
        acc = _multiply(x_desc, y_desc, row, col, begin, end, BLOCK_N, BLOCK_M, BLOCK_T, UPCAST)
        _write(out_desc, acc, base + row, col, SYMMETRIC, SPLIT_K, True)
    elif pid < above:
        tile = _multiply(x_desc, y_desc, row, col, begin, end, BLOCK_N, BLOCK_M, BLOCK_T, UPCAST)
        _write_halves(out_desc, tile, base + row, col, SYMMETRIC, SPLIT_K)
    elif SYMMETRIC:
        # The superblocks on the diagonal hold three squares each: two on it and one beside them.
        which = (pid - above) % 3
        corner = (pid - above) // 3 * BLOCK_M
        row = corner + which // 2 * BLOCK_N
        col = corner + (which + 1) // 2 * BLOCK_N
        square = _multiply(x_desc, x_desc, row, col, begin, end, BLOCK_N, BLOCK_N, BLOCK_T, UPCAST)
        _write(out_desc, square, base + row, col, SYMMETRIC, SPLIT_K, True)


@triton.jit
def split_k_reduce_kernel(
    shares_ptr,  # [split_k, rows, m], rows of contiguous numbers
    out_ptr,  # [n, m], rows of contiguous numbers
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
    """out += the shares, in order, and their mirror image if SYMMETRIC. Grid: (blocks of [BLOCK, BLOCK],)."""
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
    at = out_ptr + r * stride_on + c
    tile = tl.load(at, mask=inside, other=0.0)
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    if DEPENDENT:
        gdc_wait()  # `out` is no business of the launch before, the workspace is
    for s in tl.static_range(SPLIT_K):
        acc += tl.load(shares_ptr + (tl.cast(s, tl.int64) * rows + r) * stride_s + c, mask=inside, other=0.0)
    tile += acc
    if SYMMETRIC:
        mirrored = tl.trans(tile)
        if i == j:
            tl.store(at, tl.where(r <= c, tile, mirrored), mask=inside)
        else:
            tl.store(at, tile, mask=inside)
            turned_r = (j * BLOCK + tl.arange(0, BLOCK))[:, None].to(tl.int64)
            turned_c = (i * BLOCK + tl.arange(0, BLOCK))[None, :].to(tl.int64)
            inside = (turned_r < n) & (turned_c < m)
            tl.store(out_ptr + turned_r * stride_on + turned_c, mirrored, mask=inside)
    else:
        tl.store(at, tile, mask=inside)


SHARED = 200 * 1024
"""Bytes of shared memory that a block must be allowed: four stages of the largest tiles, and their barriers."""


def can_serve(out: Tensor, x: Tensor, weight: Tensor | None) -> bool:
    """Whether TMA can write out [n, m], the GPU has room for the tiles, and tokens such as x are or become 16-bit."""
    if not (weight is None or weight.dtype == torch.bool) or x.dtype == torch.float64 or not tiles.has_tma(x.device):
        return False
    rows_fit = out.stride(1) == 1 and out.stride(0) >= out.shape[1]
    aligned = rows_fit and out.stride(0) % 4 == 0 and out.data_ptr() % 16 == 0
    if out.dtype != torch.float32 or not aligned or min(out.shape) < 64:
        return False
    return dispatch.INTERPRETED or torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin >= SHARED


MOST_COPIED = 1 << 29
"""Bytes of terms that are made at a time."""


def prepare(out: Tensor, x: Tensor, y: Tensor, mask: Tensor | None, symmetric: bool) -> Callable[..., None]:
    """What adds xᵀ y over the tokens that mask [T] leaves to out [n, m], for such arguments; x [T, n], y [T, m].

    If symmetric y is x, and only the upper triangle of `out` is read.
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


def _prepare_terms(out: Tensor, x: Tensor, y: Tensor, T: int, terms: int, symmetric: bool) -> Callable[..., None]:
    """`prepare` for T tokens in so many terms, x [terms · rows, n] and y [terms · rows, m], that TMA can read."""
    n, m = out.shape
    t = choose_tiling(T, n, m, symmetric, terms, dispatch.num_sms(x.device))
    share = triton.cdiv(triton.cdiv(T, t.split_k), t.block_t) * t.block_t
    split_k = triton.cdiv(T, share)
    # Each share begins at a tile of its own: a tile that reaches beyond the last row must not reach into the next.
    split_rows, width = triton.cdiv(n, t.block_m) * t.block_m, triton.cdiv(m, 4) * 4
    dependent = split_k > 1 and not dispatch.INTERPRETED
    multiply = TileLaunch(
        gram_tma_kernel,
        (t.programs(n, m, symmetric), split_k),
        (
            (t.block_t, t.block_n),
            (t.block_t, t.block_m),
            (t.block_n, t.block_n // 2 if split_k > 1 else t.block_n),
        ),
        (T, n, m, share, split_rows, x.shape[0] // terms),
        SYMMETRIC=symmetric,
        TERMS=terms,
        SPLIT_K=split_k > 1,
        DEPENDENT=dependent,
        UPCAST=dispatch.INTERPRETED,
        GROUP_M=t.group,
        BLOCK_N=t.block_n,
        BLOCK_M=t.block_m,
        BLOCK_T=t.block_t,
        num_warps=t.num_warps,
        num_stages=t.num_stages,
    )
    if split_k == 1:
        return lambda out, x, y, *_: multiply(x, y, out)
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
        shares = out.new_empty((split_k * split_rows, width))
        multiply(x, y, shares)
        reduce(shares, out)

    return run


_accumulate_terms_ = Plans(_prepare_terms)
