"""Copies of tokens that TMA and the tensor cores can read: aligned rows, masked tokens as zeros, 16-bit terms.

A float32 element is the sum of three bfloat16 terms, x = a + b + c, each the rounded remainder of the previous ones: 24
bits. So x y ≈ aa' + ab' + ba' + bb' + ac' + ca' omits only what is below the last bit of a float32 product, and six
bfloat16 products take a fraction of the time of a float32 one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.common import tiles

TERMS = 3
"""bfloat16 terms per float32 element."""


@triton.jit
def split_terms_kernel(
    x_ptr,  # [T, n]
    mask_ptr,  # [T] uint8, or None
    terms_ptr,  # [TERMS · rows, n]
    T,
    n,
    rows,  # T and zeros behind it
    stride_xt,
    stride_xn,
    stride_mask,
    stride_terms,
    MASKED: tl.constexpr,
    TERMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The terms of x, one after the other. Grid: (tiles of rows, tiles of columns)."""
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x = tiles.load_tile(x_ptr, tokens, cols, stride_xt, stride_xn, T, n, False, False)  # [BLOCK_T, BLOCK_N]
    if MASKED:
        kept = tl.load(mask_ptr + tokens.to(tl.int64) * stride_mask, mask=tokens < T, other=0)
        x = tl.where(kept[:, None] != 0, x, 0.0)
    at = terms_ptr
    for term in tl.static_range(TERMS):
        part = x.to(terms_ptr.dtype.element_ty)
        tiles.store_tile(at, part, tokens, cols, stride_terms, 1, rows, n)
        if term + 1 < TERMS:
            rest = x - part.to(x.dtype)
            # The first term of infinity is infinity; the others are zero.
            x = tl.where(tl.abs(part.to(x.dtype)) < float("inf"), rest, 0.0)
            at += rows.to(tl.int64) * stride_terms


def split_terms(x: Tensor, mask: Tensor | None, rows: int) -> Tensor:
    """Terms of x [T, n], whose sum it is: [terms · rows, n] with aligned rows.

    Three bfloat16 ones of float32 numbers, one of others; zeros where mask [T] is False, and from T to `rows`.
    """
    (T, n), terms = x.shape, TERMS if x.dtype == torch.float32 else 1
    dtype = torch.bfloat16 if x.dtype == torch.float32 else x.dtype
    result = torch.empty((terms * rows, triton.cdiv(n, 8) * 8), dtype=dtype, device=x.device)[:, :n]
    block_t, block_n = 16, 128
    split_terms_kernel[(triton.cdiv(rows, block_t), triton.cdiv(n, block_n))](
        x,
        None if mask is None else mask.view(torch.uint8),
        result,
        T,
        n,
        rows,
        *x.stride(),
        0 if mask is None else mask.stride(0),
        result.stride(0),
        MASKED=mask is not None,
        TERMS=terms,
        BLOCK_T=block_t,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return result
