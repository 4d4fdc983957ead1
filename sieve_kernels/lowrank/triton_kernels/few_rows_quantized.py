"""Pairs in 8 and 4 bits of few rows on a GPU: two launches that read integers, which are exact in every dtype."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels import tiles
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.lowrank.quantize import GROUP
from sieve_kernels.lowrank.triton_kernels.few_rows import (
    OVERLAP_GEMV,
    Product,
    allocation,
    columns,
    make_launch,
    rounded,
    row_stride,
    rows_of,
    serves,
)
from sieve_kernels.lowrank.triton_kernels.few_rows_kernel import begin, small_integer
from sieve_kernels.lowrank.triton_kernels.quantized import quantized as of_any_bits


@triton.jit
def packed_gemv_kernel(
    x_ptr,  # [2 · BYTES]
    w_ptr,  # [N, BYTES] uint8, the even column in the low bits
    scale_ptr,  # [N, ⌈2 · BYTES / COLUMNS⌉]
    bias_ptr,  # [N]
    out_ptr,  # [N]
    N,
    BYTES,
    stride_w,
    stride_scale,
    COLUMNS: tl.constexpr,  # per scale
    BIASED: tl.constexpr,
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # bytes
    VECTOR: tl.constexpr,  # bytes that a thread loads at once, under one scale
):
    """out = w x + bias. Grid: (tiles of out,)."""
    PER_SCALE: tl.constexpr = COLUMNS // (2 * VECTOR)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    used = rows < N
    begin(w_ptr, rows, used, BYTES, stride_w, OVERLAP, BLOCK_N, BLOCK_K)
    if BIASED:
        bias = tl.load(bias_ptr + rows, mask=used, other=0.0)
    ks = tl.arange(0, BLOCK_K)
    vectors = tl.arange(0, BLOCK_K // VECTOR)
    acc = tl.zeros((BLOCK_N, BLOCK_K // VECTOR), dtype=ACC)
    for start in range(0, BYTES, BLOCK_K):
        inside = start + ks < BYTES
        at = w_ptr + rows[:, None].to(tl.int64) * stride_w + (start + ks)[None, :]
        w = tl.load(at, mask=used[:, None] & inside[None, :], other=0)
        both = 2 * start + tl.arange(0, 2 * BLOCK_K)
        x = tl.load(x_ptr + both, mask=both < 2 * BYTES, other=0.0).to(ACC)
        even, odd = tl.split(tl.reshape(x, (BLOCK_K, 2)))
        low, high = small_integer(w & 15, 8), small_integer(w >> 4, 8)
        product = low * even[None, :] + high * odd[None, :]
        sums = tl.sum(tl.reshape(product, (BLOCK_N, BLOCK_K // VECTOR, VECTOR)), 2)
        of_scale = (start // VECTOR + vectors) // PER_SCALE
        exists = of_scale < tl.cdiv(2 * BYTES, COLUMNS)
        scale_at = scale_ptr + rows[:, None].to(tl.int64) * stride_scale + of_scale[None, :]
        scale = tl.load(scale_at, mask=used[:, None] & exists[None, :], other=0.0)
        acc += sums * scale.to(ACC)
    y = tl.sum(acc, 1)
    if BIASED:
        y += bias.to(ACC)
    tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), mask=used)


def _prepare_quantized(
    x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None
) -> Callable:
    (T, n), r, m, dtype = rows_of(x), A_q.shape[0], B_q.shape[0], x.dtype
    _, width = columns([r])
    if not serves(x, A_q, B_q):
        return of_any_bits
    if A_q.dtype == B_q.dtype == torch.int8:
        options = {"device": x.device, "bits": 8, "scaled": True}
        first = make_launch(T, row_stride(x), [Product(r, n, A_q.stride(0), width)], early=False, **options)
        products = [Product(m, r, B_q.stride(0), m)]
        second = make_launch(T, width, products, early=True, biased=bias is not None, **options)
    elif A_q.dtype == B_q.dtype == torch.uint8 and T == 1 and n % 2 == r % 2 == 0:
        first, second = _packed(A_q, A_scale, False, early=False), _packed(B_q, B_scale, bias is not None, early=True)
    else:
        return of_any_bits
    make_z, make_y = allocation((T, width), dtype, x.device), allocation((*x.shape[:-1], m), dtype, x.device)

    def run(x, A_q, A_scale, B_q, B_scale, bias):
        z, y = make_z(), make_y()
        first(x, A_q, A_scale, z)
        second(rounded(z, dtype), B_q, B_scale, *(() if bias is None else (bias,)), y)
        return rounded(y, dtype)

    return run


def _packed(q: Tensor, scale: Tensor, biased: bool, early: bool) -> Launch:
    """The launch of a factor of 4 bits; it takes x, integers, scales, the bias if there is one, and the output."""
    N, size = q.shape
    block_k = min(2048, max(256, triton.next_power_of_2(size)))
    block_n, overlap = 4096 // block_k, OVERLAP_GEMV if tiles.has_tma(q.device) else 0
    return Launch(
        packed_gemv_kernel,
        (triton.cdiv(N, block_n),),
        (N, size, q.stride(0), scale.stride(0)),
        tensors=["x_ptr", "w_ptr", "scale_ptr", *(["bias_ptr"] if biased else []), "out_ptr"],
        COLUMNS=GROUP,
        BIASED=biased,
        EARLY=early,
        OVERLAP=overlap,
        ACC=tl.float32,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        VECTOR=16,
        num_warps=4,
        **({"launch_pdl": True} if overlap else {}),
    )


quantized = Plans(_prepare_quantized)
"""y [..., m] of x [..., n], factors of [r, n] and [m, r] with scales as `quantize_rows` makes them, and bias [m] or
None."""
