"""Triton kernels of norms and rotary positions, and their launchers: one launch each.

A call with the shapes, strides, dtypes and alignments of an earlier one costs the host a look-up and the launch.
"""

import torch
import triton
import triton.language as tl

from sieve_kernels.common import tiles
from sieve_kernels.core.device import INTERPRETED, num_sms
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.pointwise.launches import MOST_COLUMNS, begin, common_constants, fresh_output, rows_in_place

SMALL_ROWS = 2048
"""Elements of a program of `rms_norm` that takes several rows."""


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [T, n]
    weight_ptr,  # [n]
    out_ptr,  # [T, n]
    T,
    n,
    stride_x,
    epsilon,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,  # ≥ n
):
    """out = weight · x / √(mean x² + ε), row by row. Grid: (groups of rows,)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    inside = (rows < T)[:, None] & (cols < n)[None, :]
    begin(PDL)
    x = tl.load(x_ptr + rows[:, None].to(tl.int64) * stride_x + cols[None, :], mask=inside, other=0.0).to(ACC)
    weight = tl.load(weight_ptr + cols, mask=cols < n, other=0.0).to(ACC)
    scale = tl.rsqrt(tl.sum(x * x, 1) / n + epsilon)
    # Round twice, as transformers does: after normalisation, and after the product with the weight.
    normalised = tiles.rounded(x * scale[:, None], x_ptr.dtype.element_ty, UPCAST)
    y = tiles.rounded(normalised * weight[None, :], x_ptr.dtype.element_ty, UPCAST)
    tl.store(out_ptr + rows[:, None].to(tl.int64) * n + cols[None, :], y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rotate(
    x_ptr,
    out_ptr,
    cos_first,
    cos_second,
    sin_first,
    sin_second,
    heads,
    inside,
    half,
    stride_xh,
    stride_xd,
    stride_oh,
    stride_od,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = x · cos + (-second, first) · sin, for some heads of one token; the parts of cos and sin are [1, BLOCK]."""
    cols = tl.arange(0, BLOCK)[None, :]
    at = x_ptr + heads[:, None].to(tl.int64) * stride_xh + cols * stride_xd
    first = tl.load(at, mask=inside, other=0.0).to(cos_first.dtype)
    second = tl.load(at + half * stride_xd, mask=inside, other=0.0).to(cos_first.dtype)
    # Each product and the sum are rounded, as transformers does it.
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    left = tiles.rounded(first * cos_first, DTYPE, UPCAST) - tiles.rounded(second * sin_first, DTYPE, UPCAST)
    right = tiles.rounded(second * cos_second, DTYPE, UPCAST) + tiles.rounded(first * sin_second, DTYPE, UPCAST)
    at = out_ptr + heads[:, None].to(tl.int64) * stride_oh + cols * stride_od
    tl.store(at, tiles.rounded(left, DTYPE, UPCAST).to(out_ptr.dtype.element_ty), mask=inside)
    at += half * stride_od
    tl.store(at, tiles.rounded(right, DTYPE, UPCAST).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rotary_kernel(
    q_ptr,  # [b, h, t, d]
    k_ptr,  # [b, g, t, d]
    cos_ptr,  # [b or 1, t, d]
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    t,
    half,  # d / 2
    h,
    g,
    stride_qb,
    stride_qh,
    stride_qt,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kt,
    stride_kd,
    stride_cb,  # 0 where cos serves the whole batch
    stride_ct,
    stride_cd,
    stride_sb,
    stride_st,
    stride_sd,
    stride_qob,
    stride_qoh,
    stride_qot,
    stride_qod,
    stride_kob,
    stride_koh,
    stride_kot,
    stride_kod,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,  # ≥ half
):
    """Queries and keys of one token rotated. Grid: (groups of query heads, then of key heads · b · t,)."""
    # Which heads, of which token.
    q_groups = tl.cdiv(h, HEADS)
    groups = q_groups + tl.cdiv(g, HEADS)
    group = tl.program_id(0) % groups
    token = tl.program_id(0) // groups
    batch = (token // t).to(tl.int64)
    place = (token % t).to(tl.int64)
    cols = tl.arange(0, BLOCK)[None, :]
    known = cols < half
    # Its angles, read once for all of these heads.
    begin(PDL)
    cos = cos_ptr + batch * stride_cb + place * stride_ct + cols * stride_cd
    sin = sin_ptr + batch * stride_sb + place * stride_st + cols * stride_sd
    cos_first = tl.load(cos, mask=known, other=0.0).to(ACC)
    cos_second = tl.load(cos + half * stride_cd, mask=known, other=0.0).to(ACC)
    sin_first = tl.load(sin, mask=known, other=0.0).to(ACC)
    sin_second = tl.load(sin + half * stride_sd, mask=known, other=0.0).to(ACC)
    # Queries, or keys.
    if group < q_groups:
        heads = group * HEADS + tl.arange(0, HEADS)
        rotate(
            q_ptr + batch * stride_qb + place * stride_qt,
            q_out_ptr + batch * stride_qob + place * stride_qot,
            cos_first,
            cos_second,
            sin_first,
            sin_second,
            heads,
            (heads < h)[:, None] & known,
            half,
            stride_qh,
            stride_qd,
            stride_qoh,
            stride_qod,
            UPCAST,
            BLOCK,
        )
    else:
        heads = (group - q_groups) * HEADS + tl.arange(0, HEADS)
        rotate(
            k_ptr + batch * stride_kb + place * stride_kt,
            k_out_ptr + batch * stride_kob + place * stride_kot,
            cos_first,
            cos_second,
            sin_first,
            sin_second,
            heads,
            (heads < g)[:, None] & known,
            half,
            stride_kh,
            stride_kd,
            stride_koh,
            stride_kod,
            UPCAST,
            BLOCK,
        )


def _prepare_rms_norm(x, weight, epsilon):
    if x.numel() == 0:
        return lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = rows_in_place(x)
    if rows is None or weight.stride(0) != 1:
        return lambda x, weight, epsilon: rms_norm(x.contiguous(), weight.contiguous(), epsilon)
    # One row per program; several if rows are short and there are enough for all multiprocessors.
    (T, n), shape, dtype, device = rows.shape, x.shape, x.dtype, x.device
    block = triton.next_power_of_2(n)
    together = max(1, min(SMALL_ROWS // block, triton.next_power_of_2(triton.cdiv(T, 2 * num_sms(device)))))
    launch = Launch(
        rms_norm_kernel,
        (triton.cdiv(T, together),),
        (T, n, rows.stride(0), epsilon),
        ROWS=together,
        BLOCK=block,
        num_warps=min(16, max(1, together * block // 256)),
        UPCAST=INTERPRETED,
        **common_constants(x),
    )
    fresh = fresh_output(x, shape)

    def run(x, weight, epsilon):
        y = fresh(x)
        launch(x, weight, y)
        return y if y.dtype is dtype else y.to(dtype)

    return run


def _prepare_rotary(q, k, cos, sin):
    (b, h, t, d), g, dtype, compute = q.shape, k.shape[1], q.dtype, tiles.compute_dtype(q.dtype)
    if b * t * d * (h + g) == 0:
        return lambda q, k, cos, sin: (torch.empty_like(q), torch.empty_like(k))
    block = triton.next_power_of_2(d // 2)
    heads = min(triton.next_power_of_2(max(h, g)), max(1, MOST_COLUMNS // block))
    if b * t * triton.cdiv(h + g, heads) < num_sms(q.device):
        heads = max(1, heads // 4)
    angles = [(0 if x.shape[0] == 1 else x.stride(0), *x.stride()[1:]) for x in (cos, sin)]
    rotated = [torch.empty_like(x, device="meta").stride() for x in (q, k)]
    launch = Launch(
        rotary_kernel,
        (b * t * (triton.cdiv(h, heads) + triton.cdiv(g, heads)),),
        (t, d // 2, h, g, *q.stride(), *k.stride(), *angles[0], *angles[1], *rotated[0], *rotated[1]),
        HEADS=heads,
        BLOCK=block,
        num_warps=max(1, heads * block // 256),
        # Fused multiply-adds would skip the rounding of products.
        enable_fp_fusion=False,
        UPCAST=INTERPRETED,
        **common_constants(q),
    )

    def run(q, k, cos, sin):
        rotated = torch.empty_like(q, dtype=compute), torch.empty_like(k, dtype=compute)
        launch(q, k, cos, sin, *rotated)
        return rotated if compute is dtype else tuple(x.to(dtype) for x in rotated)

    return run


rms_norm = Plans(_prepare_rms_norm)
"""weight · x / √(mean x² + ε) of x [..., n], weight [n] and ε."""

rotary = Plans(_prepare_rotary)
"""q [b, h, t, d], k [b, g, t, d], cos and sin [b or 1, t, d] → q and k rotated, with the strides of `empty_like`."""
