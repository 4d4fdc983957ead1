"""Triton kernels of what lies between the matrices, and their launchers: one launch each.

A call like one before, in shapes, strides, dtypes and alignments, costs the host a look-up and the launch.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sieve_kernels import tiles
from sieve_kernels.arguments import as_rows
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.dispatch import INTERPRETED, processors
from sieve_kernels.pointwise.activations import activate

SMALL_ROWS = 2048
"""Numbers of the rows of which a program of `rms_norm` takes several."""

MOST_COLUMNS = 1024
"""Of a row, in a program of `act_mul` or `gather_columns`."""

GROUPED_ROWS = 4
"""Rows that such a program makes where there are many and columns are gathered: it reads the indices once for all of
them."""


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait for the launch before, of which this one may have overlapped the end; from here the next one may begin."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [T, n]
    weight_ptr,  # [n]
    out_ptr,  # [T, n]
    T,
    n,
    stride_x,
    epsilon,
    WIDE: tl.constexpr,
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
    x = tl.load(x_ptr + rows[:, None].to(tl.int64) * stride_x + cols[None, :], mask=inside, other=0.0).to(WIDE)
    weight = tl.load(weight_ptr + cols, mask=cols < n, other=0.0).to(WIDE)
    scale = tl.rsqrt(tl.sum(x * x, 1) / n + epsilon)
    # Rounded twice, as transformers does it: what is normalised, then its product with the weight.
    normalised = tiles.rounded(x * scale[:, None], x_ptr.dtype.element_ty, UPCAST)
    y = tiles.rounded(normalised * weight[None, :], x_ptr.dtype.element_ty, UPCAST)
    tl.store(out_ptr + rows[:, None].to(tl.int64) * n + cols[None, :], y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def turn(
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
    turned_first = tiles.rounded(first * cos_first, DTYPE, UPCAST) - tiles.rounded(second * sin_first, DTYPE, UPCAST)
    turned_second = tiles.rounded(second * cos_second, DTYPE, UPCAST) + tiles.rounded(first * sin_second, DTYPE, UPCAST)
    at = out_ptr + heads[:, None].to(tl.int64) * stride_oh + cols * stride_od
    tl.store(at, tiles.rounded(turned_first, DTYPE, UPCAST).to(out_ptr.dtype.element_ty), mask=inside)
    at += half * stride_od
    tl.store(at, tiles.rounded(turned_second, DTYPE, UPCAST).to(out_ptr.dtype.element_ty), mask=inside)


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
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,  # ≥ half
):
    """Queries and keys of one token turned. Grid: (groups of query heads, then of key heads · b · t,)."""
    q_groups = tl.cdiv(h, HEADS)
    groups = q_groups + tl.cdiv(g, HEADS)
    group = tl.program_id(0) % groups
    token = tl.program_id(0) // groups
    batch = (token // t).to(tl.int64)
    place = (token % t).to(tl.int64)
    cols = tl.arange(0, BLOCK)[None, :]
    known = cols < half
    begin(PDL)
    cos = cos_ptr + batch * stride_cb + place * stride_ct + cols * stride_cd
    sin = sin_ptr + batch * stride_sb + place * stride_st + cols * stride_sd
    cos_first = tl.load(cos, mask=known, other=0.0).to(WIDE)
    cos_second = tl.load(cos + half * stride_cd, mask=known, other=0.0).to(WIDE)
    sin_first = tl.load(sin, mask=known, other=0.0).to(WIDE)
    sin_second = tl.load(sin + half * stride_sd, mask=known, other=0.0).to(WIDE)
    if group < q_groups:
        heads = group * HEADS + tl.arange(0, HEADS)
        turn(
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
        turn(
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


@triton.jit
def named_columns(index_ptr, cols, n, width, INDEXED: tl.constexpr):
    """Where columns `cols` of n come from, out of `width` or (not INDEXED) from their own places, and whether there is
    something: indices come from tensors that the host does not look at."""
    inside = cols < n
    if INDEXED:
        cols = tl.load(index_ptr + cols, mask=inside, other=-1).to(tl.int32)
        inside = (cols >= 0) & (cols < width)
    return cols, inside


@triton.jit
def act_mul_kernel(
    gate_ptr,  # [T, gate_width]
    up_ptr,  # [T, up_width]
    gate_index_ptr,  # [n] if GATE_INDEXED
    up_index_ptr,  # [n] if UP_INDEXED
    out_ptr,  # [T, n]
    T,
    n,
    gate_width,
    up_width,
    stride_gate,
    stride_up,
    stride_out,
    ACTIVATION: tl.constexpr,
    GATE_INDEXED: tl.constexpr,
    UP_INDEXED: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t, j] = act(gate[t, gate_index[j]]) · up[t, up_index[j]]. Grid: (blocks of columns · groups of rows,)."""
    across = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // across * ROWS
    cols = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    begin(PDL)
    gates, gates_inside = named_columns(gate_index_ptr, cols, n, gate_width, GATE_INDEXED)
    ups, ups_inside = named_columns(up_index_ptr, cols, n, up_width, UP_INDEXED)
    # All rows at once: loads of one row would be too few to hide their latency where columns come one by one.
    rows = first + tl.arange(0, ROWS)[:, None]
    at = rows.to(tl.int64)
    there = rows < T
    gate = tl.load(gate_ptr + at * stride_gate + gates[None, :], mask=there & gates_inside[None, :], other=0.0)
    up = tl.load(up_ptr + at * stride_up + ups[None, :], mask=there & ups_inside[None, :], other=0.0)
    h = activate(gate.to(WIDE), ACTIVATION) * up.to(WIDE)
    out = out_ptr + at * stride_out + cols[None, :]
    tl.store(out, h.to(out_ptr.dtype.element_ty), mask=there & (cols < n)[None, :])


@triton.jit
def gather_columns_kernel(
    x_ptr,  # [T, width]
    index_ptr,  # [n]
    bias_ptr,  # [n] if BIASED
    out_ptr,  # [T, n]
    T,
    n,
    width,
    stride_x,
    BIASED: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t, j] = x[t, index[j]] + bias[j]. Grid: (blocks of columns · groups of rows,)."""
    across = tl.cdiv(n, BLOCK)
    first = tl.program_id(0) // across * ROWS
    cols = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    begin(PDL)
    named, inside = named_columns(index_ptr, cols, n, width, True)
    if BIASED:
        bias = tl.load(bias_ptr + cols, mask=cols < n, other=0.0).to(WIDE)
    rows = first + tl.arange(0, ROWS)[:, None]
    at = rows.to(tl.int64)
    there = rows < T
    y = tl.load(x_ptr + at * stride_x + named[None, :], mask=there & inside[None, :], other=0.0).to(WIDE)
    if BIASED:
        y += bias[None, :]
    tl.store(out_ptr + at * n + cols[None, :], y.to(out_ptr.dtype.element_ty), mask=there & (cols < n)[None, :])


def _prepare_rms_norm(x, weight, epsilon):
    if x.numel() == 0:
        return lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = _rows(x)
    if rows is None or weight.stride(0) != 1:
        return lambda x, weight, epsilon: rms_norm(x.contiguous(), weight.contiguous(), epsilon)
    (T, n), shape, dtype, device = rows.shape, x.shape, x.dtype, x.device
    block = triton.next_power_of_2(n)
    together = max(1, min(SMALL_ROWS // block, triton.next_power_of_2(triton.cdiv(T, 2 * processors(device)))))
    launch = Launch(
        rms_norm_kernel,
        (triton.cdiv(T, together),),
        (T, n, rows.stride(0), epsilon),
        ROWS=together,
        BLOCK=block,
        num_warps=min(16, max(1, together * block // 256)),
        **_common(x),
    )

    fresh = _fresh(x, shape)

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
    if b * t * triton.cdiv(h + g, heads) < processors(q.device):
        heads = max(1, heads // 4)
    angles = [(0 if x.shape[0] == 1 else x.stride(0), *x.stride()[1:]) for x in (cos, sin)]
    turned = [torch.empty_like(x, device="meta").stride() for x in (q, k)]
    launch = Launch(
        rotary_kernel,
        (b * t * (triton.cdiv(h, heads) + triton.cdiv(g, heads)),),
        (t, d // 2, h, g, *q.stride(), *k.stride(), *angles[0], *angles[1], *turned[0], *turned[1]),
        HEADS=heads,
        BLOCK=block,
        num_warps=max(1, heads * block // 256),
        **_common(q),
    )

    def run(q, k, cos, sin):
        turned = torch.empty_like(q, dtype=compute), torch.empty_like(k, dtype=compute)
        launch(q, k, cos, sin, *turned)
        return turned if compute is dtype else tuple(x.to(dtype) for x in turned)

    return run


def _prepare_act_mul(gate, up, activation, gate_index=None, up_index=None, out=None):
    dtype, device, compute = gate.dtype, gate.device, tiles.compute_dtype(gate.dtype)
    shape = (*gate.shape[:-1], (gate if gate_index is None else gate_index).shape[-1])
    if 0 in shape:
        return lambda *_: torch.empty(shape, dtype=dtype, device=device) if out is None else out
    gates, ups, n = _rows(gate), _rows(up), shape[-1]
    if gates is None or ups is None or not _are_in_one_piece(gate_index, up_index):
        return lambda gate, up, activation, *others: act_mul(
            gate.contiguous(), up.contiguous(), activation, *map(_in_one_piece, others[:2]), *others[2:]
        )
    T, direct = len(gates), out is not None and dtype == compute
    rows, block, warps = _blocks(T, n, gate_index is not None or up_index is not None, device)
    launch = Launch(
        act_mul_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, gates.shape[1], ups.shape[1], gates.stride(0), ups.stride(0), as_rows(out).stride(0) if direct else n),
        ACTIVATION=activation,
        GATE_INDEXED=gate_index is not None,
        UP_INDEXED=up_index is not None,
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
        **_common(gate),
    )

    fresh = _fresh(gate, shape)

    def run(gate, up, activation, gate_index=None, up_index=None, out=None):
        h = out if direct else fresh(gate)
        launch(gate, up, gate_index, up_index, h)
        if out is None:
            return h if h.dtype is dtype else h.to(dtype)
        return out if direct else out.copy_(h)

    return run


def _prepare_gather_columns(x, index, bias=None):
    dtype, device, compute = x.dtype, x.device, tiles.compute_dtype(x.dtype)
    T, n = shape = x.shape[0], index.shape[0]
    if 0 in shape:
        return lambda *_: torch.empty(shape, dtype=dtype, device=device)
    if _rows(x) is None or not _are_in_one_piece(index, bias):
        return lambda *arguments: gather_columns(*map(_in_one_piece, arguments))
    rows, block, warps = _blocks(T, n, True, device)
    launch = Launch(
        gather_columns_kernel,
        (triton.cdiv(T, rows) * triton.cdiv(n, block),),
        (T, n, x.shape[1], x.stride(0)),
        BIASED=bias is not None,
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
        **_common(x),
    )

    def run(x, index, bias=None):
        y = torch.empty(shape, dtype=compute, device=device)
        launch(x, index, bias, y)
        return y if y.dtype is dtype else y.to(dtype)

    return run


def _fresh(x: Tensor, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """A function of x to memory for what kernels make of it. A tensor's like is there in half the time of a shape's."""
    compute = tiles.compute_dtype(x.dtype)
    if compute == x.dtype and x.shape == shape and x.is_contiguous():
        return torch.empty_like
    device = x.device
    return lambda x: torch.empty(shape, dtype=compute, device=device)


def _rows(x: Tensor) -> Tensor | None:
    """x [..., n] as a matrix [T, n] of rows of contiguous numbers; None if that takes a copy."""
    rows = as_rows(x)
    return rows if rows.data_ptr() == x.data_ptr() and _are_in_one_piece(rows) else None


def _in_one_piece(t: Tensor | None) -> Tensor | None:
    """With rows of contiguous numbers."""
    return t if _are_in_one_piece(t) else t.contiguous()


def _are_in_one_piece(*tensors: Tensor | None) -> bool:
    return all(t is None or t.stride(-1) == 1 or t.shape[-1] == 1 for t in tensors)


def _common(x: Tensor) -> dict[str, object]:
    """What every kernel is told, for an input x."""
    overlapping = tiles.has_tma(x.device)
    return {
        "WIDE": tiles.TRITON_DTYPES[tiles.accumulator(x.dtype)],
        "UPCAST": INTERPRETED,
        "PDL": overlapping,
        **({"launch_pdl": True} if overlapping else {}),
    }


def _blocks(T: int, n: int, gathered: bool, device: torch.device) -> tuple[int, int, int]:
    """Rows, columns and warps of a program that makes [T, n].

    A thread makes 16 bytes of a row where it loads as many at once; two numbers where it gathers them one by one, so
    that a warp's loads are of neighbours.
    """
    each = 2 if gathered else 8
    block = min(triton.next_power_of_2(n), MOST_COLUMNS // 2 if gathered else MOST_COLUMNS)
    programs = T * triton.cdiv(n, block)
    if programs < processors(device):
        block = max(block // 4, 32)
    most = GROUPED_ROWS if gathered else GROUPED_ROWS // 2
    rows = most if programs >= 4 * most * processors(device) else 1
    return rows, block, max(1, block // (32 * each))


rms_norm = Plans(_prepare_rms_norm)
"""weight · x / √(mean x² + ε) of x [..., n], weight [n] and ε."""

rotary = Plans(_prepare_rotary)
"""q [b, h, t, d], k [b, g, t, d], cos and sin [b or 1, t, d] → q and k turned, with the strides of `empty_like`."""

act_mul = Plans(_prepare_act_mul)
"""h[…, j] = act(gate[…, gate_index[j]]) · up[…, up_index[j]], rounded once, of gate and up [..., m] (halves of one
tensor will do), an activation, and, if given, gate_index and up_index [m] int32 or int64, and `out`, where to write h:
a matrix with rows in one piece, which may be gate or up where nothing is gathered."""

gather_columns = Plans(_prepare_gather_columns)
"""y[t, j] = x[t, index[j]] + bias[j] of x [T, n], index [m] int32 or int64 and, if given, bias [m]."""
