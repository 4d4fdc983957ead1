"""CPU path of the low-rank family: products of the library GEMM, which reads sliced factors in place."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.wide_products import multiplies_wide, parts, wide_products
from sieve_kernels.lowrank.quantize import dequantize_rows


@wide_products
def linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = (x Aᵀ) Bᵀ + bias; x [..., n], A [r, n], B [m, r], bias [m]."""
    return F.linear(F.linear(x, A), B, bias)


@wide_products
def linear_backward(grad: Tensor, x: Tensor, A: Tensor, B: Tensor, needed: list[bool]) -> list[Tensor]:
    """Gradients of x [..., n], A [r, n] and B [m, r], those that are needed; grad [..., m]. Recomputes z = x Aᵀ."""
    rows, tokens = as_rows(grad), as_rows(x)
    gradients = []
    if needed[0] or needed[1]:
        dz = rows @ B
        gradients += [(dz @ A).reshape(x.shape)] if needed[0] else []
        gradients += [dz.T @ tokens] if needed[1] else []
    if needed[2]:
        gradients += [rows.T @ (tokens @ A.T)]
    return gradients


EXPANDED_ROWS = 128
"""From this number of 16-bit tokens on, a pivoted pair's identity rows are multiplied like all others. On processors
with fast 16-bit products this costs less than moving columns of y: 0.4 against 2 ms for 2048 × 576 at r = 320."""


@wide_products
def pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m], y[..., permutation] = [z, z Cᵀ] + bias[permutation], z = x Aᵀ.

    x [..., n], A [r, n], C [m - r, r], permutation [m] int64, bias [m].
    """
    r, z = A.shape[0], F.linear(x, A)
    if x.dtype.itemsize == 2 and x.numel() >= EXPANDED_ROWS * x.shape[-1]:
        B = x.new_zeros(len(permutation), r)
        B.view(-1).index_fill_(0, permutation[:r] * r + torch.arange(r, device=x.device), 1)
        return F.linear(z, B.index_copy_(0, permutation[r:], C), bias)
    ahead = behind = None
    if bias is not None:  # the bias is added here, so that results are rounded once
        ahead, behind = bias.index_select(0, permutation).tensor_split((r,))
    y = torch.cat([z if ahead is None else z + ahead, F.linear(z, C, behind)], -1)
    return y.index_select(-1, torch.argsort(permutation))


@wide_products
def pivoted_backward(
    grad: Tensor, x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, needed: list[bool]
) -> list[Tensor]:
    """Gradients of x [..., n], A [r, n] and C [m - r, r], those that are needed; grad [..., m]. Recomputes z = x Aᵀ."""
    rows, tokens, r = _columns(as_rows(grad), permutation), as_rows(x), A.shape[0]
    direct, through = rows[:, :r], rows[:, r:]
    gradients = []
    if needed[0] or needed[1]:
        dz = torch.addmm(direct, through, C)
        gradients += [(dz @ A).reshape(x.shape)] if needed[0] else []
        gradients += [dz.T @ tokens] if needed[1] else []
    if needed[2]:
        gradients += [through.T @ (tokens @ A.T)]
    return gradients


def _columns(rows: Tensor, order: Tensor) -> Tensor:
    """rows [T, m] with their columns in this order. On CPU torch gathers 32-bit columns three times as fast as 16-bit
    ones, and conversion there and back is exact: .8 against 2.0 ms for 430 × 1536 of bfloat16."""
    if rows.device.type == "cpu" and rows.dtype.itemsize == 2:
        return rows.float().index_select(1, order).to(rows.dtype)
    return rows.index_select(1, order)


BLOCK_ROWS = 512
"""Fewest tokens of a block in a group or gated layer: enough for the library's best speed, and few enough that
intermediates stay in cache."""


def token_blocks(T: int) -> list[slice]:
    """T tokens in blocks of nearly one size, BLOCK_ROWS or up to twice as many."""
    count = max(1, T // BLOCK_ROWS)
    return [slice(T * i // count, T * (i + 1) // count) for i in range(count)]


@wide_products
def group(x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], biases: Sequence[Tensor] | None) -> list[Tensor]:
    """y_i [..., m_i] = (x A_iᵀ) B_iᵀ + bias_i; x [..., n], A_i [r_i, n], B_i [m_i, r_i], bias_i [m_i].

    All layers run on a block of tokens before the next block, so x is read once and intermediates are as short as a
    block.
    """
    biases = biases or [None] * len(As)
    if x.numel() < 2 * BLOCK_ROWS * x.shape[-1]:
        return [linear(x, *factors) for factors in zip(As, Bs, biases, strict=True)]
    rows = as_rows(x)
    ys = [x.new_empty((rows.shape[0], B.shape[0])) for B in Bs]
    for block in token_blocks(rows.shape[0]):
        for y, A, B, bias in zip(ys, As, Bs, biases, strict=True):
            product(rows[block] @ A.T, B, bias, y[block])
    return [y.reshape(*x.shape[:-1], y.shape[1]) for y in ys]


def product(x: Tensor, W: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """out [T, m] = x Wᵀ + bias, a new tensor if there is none; x [T, n], W [m, n], bias [m]."""
    if out is None:
        return F.linear(x, W, bias)
    return torch.mm(x, W.t(), out=out) if bias is None else torch.addmm(bias, x, W.t(), out=out)


@wide_products
def group_backward(
    grads: Sequence[Tensor], x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of x [..., n], the A_i [r_i, n] and the B_i [m_i, r_i], those that are needed; grads [..., m_i]."""
    count, tokens = len(As), as_rows(x)
    dx, dAs, dBs = None, [], []
    for grad, A, B, A_needed, B_needed in zip(grads, As, Bs, needed[1 : 1 + count], needed[1 + count :], strict=True):
        rows = as_rows(grad)
        if needed[0] or A_needed:
            dz = rows @ B
            if needed[0]:
                dx = dz @ A if dx is None else dx.addmm_(dz, A)
            dAs += [dz.T @ tokens] if A_needed else []
        dBs += [rows.T @ (tokens @ A.T)] if B_needed else []
    return [*([] if dx is None else [dx.reshape(x.shape)]), *dAs, *dBs]


def dense(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = x Wᵀ + bias; x [..., n], W [m, n], bias [m]."""
    if not (multiplies_wide(x) and W.numel()):
        return F.linear(x, W, bias)
    y, wide = x.new_empty((*x.shape[:-1], W.shape[0])), x.float()
    for part in parts(W):
        y[..., part] = F.linear(wide, W[part].float(), None if bias is None else bias[part].float())
    return y


def dense_backward(grad: Tensor, x: Tensor, W: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of x [..., n] and W [m, n], those that are needed; grad [..., m]."""
    rows, tokens = as_rows(grad), as_rows(x)
    if not (multiplies_wide(x) and W.numel()):
        return [*([(rows @ W).reshape(x.shape)] if needed[0] else []), *([rows.T @ tokens] if needed[1] else [])]
    dx, dW, tokens = None, torch.empty_like(W) if needed[1] else None, tokens.float()
    for part in parts(W):
        wide = rows[:, part].float()
        if needed[0]:
            weight = W[part].float()
            dx = wide @ weight if dx is None else dx.addmm_(wide, weight)
        if dW is not None:
            dW[part] = wide.T @ tokens
    return [*([] if dx is None else [dx.to(x.dtype).reshape(x.shape)]), *([] if dW is None else [dW])]


@wide_products
def quantized(x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None) -> Tensor:
    """y [..., m] = (x Aᵀ) Bᵀ + bias; the factors as `quantize_rows` makes them, one at a time in x's dtype."""
    z = F.linear(x, dequantize_rows(A_q, A_scale, x.shape[-1], x.dtype))
    return F.linear(z, dequantize_rows(B_q, B_scale, A_q.shape[0], x.dtype), bias)


FULL_ROWS = 64
"""From this number of rows per candidate on, computing candidates together gains nothing."""


@wide_products
def population(x: Tensor, A: Tensor, B: Tensor, ranks: Tensor) -> Tensor:
    """y[p] = (x[p] A[:r]ᵀ) B[:, :r]ᵀ, r = ranks[p]; x [P, T, n], A [R, n], B [m, R], ranks [P] → [P, T, m]."""
    y = x.new_empty((*x.shape[:-1], B.shape[0]))
    if x.shape[1] >= FULL_ROWS:
        for rows, out, rank in zip(x, y, ranks.tolist(), strict=True):
            product(rows @ A[:rank].T, B[:, :rank], None, out)
    else:
        for members, rank in _by_rank(ranks):
            y[members] = linear(x[members], A[:rank], B[:, :rank], None)
    return y


@wide_products
def population_backward(
    grad: Tensor, x: Tensor, A: Tensor, B: Tensor, ranks: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of x [P, T, n], A [R, n] and B [m, R], those that are needed; grad [P, T, m]. Zero beyond all ranks."""
    totals = [torch.zeros_like(t) if wanted else None for t, wanted in zip((x, A, B), needed, strict=True)]
    dx, dA, dB = totals
    for members, rank in _by_rank(ranks):
        found = iter(linear_backward(grad[members], x[members], A[:rank], B[:, :rank], needed))
        if dx is not None:
            dx[members] = next(found)
        if dA is not None:
            dA[:rank] += next(found)
        if dB is not None:
            dB[:, :rank] += next(found)
    return [t for t in totals if t is not None]


def _by_rank(ranks: Tensor) -> list[tuple[Tensor, int]]:
    """Groups of candidates with equal ranks, and the rank: a group reads the factors once."""
    return [((ranks == rank).nonzero().flatten(), rank) for rank in ranks.unique().tolist()]
