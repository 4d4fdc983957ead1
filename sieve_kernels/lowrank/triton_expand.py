"""Whole second factors of pivoted pairs, in one launch for several layers."""

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.core.device import INTERPRETED, has_tma
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.pointwise.launches import begin

MOST_MEMBERS = 3
ROWS, BLOCK, WARPS = 4, 512, 4


@triton.jit
def expand_rows(c_ptr, index_ptr, out_ptr, first, m, r, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """ROWS rows of out from `first` on: those of the identity that the index names below r, those of c above."""
    rows = first + tl.arange(0, ROWS)
    named = tl.load(index_ptr + rows, mask=rows < m, other=-1)
    # The host does not check the index: rows with indices outside the range stay zero.
    of_c = (named >= r) & (named < m)
    source = c_ptr + (named - r).to(tl.int64)[:, None] * stride
    target = out_ptr + rows.to(tl.int64)[:, None] * r
    for start in range(0, r, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        inside = (cols < r)[None, :]
        row = tl.load(source + cols[None, :], mask=of_c[:, None] & inside, other=0.0)
        row = tl.where(named[:, None] == cols[None, :], 1.0, row).to(out_ptr.dtype.element_ty)
        tl.store(target + cols[None, :], row, mask=(rows < m)[:, None] & inside)


@triton.jit
def expand_kernel(
    c0_ptr,  # [m - r, r], one a member
    c1_ptr,
    c2_ptr,
    index0_ptr,  # [m]
    index1_ptr,
    index2_ptr,
    out0_ptr,  # [m, r]
    out1_ptr,
    out2_ptr,
    m0,
    m1,
    m2,  # 0 of a missing member
    r0,
    r1,
    r2,
    stride0,  # of rows of c
    stride1,
    stride2,
    COUNT: tl.constexpr,
    PDL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out_i[j] = [I, c_i][index_i[j]]. Grid: (groups of rows of all members,)."""
    begin(PDL)
    at = tl.program_id(0)
    second = tl.cdiv(m0, ROWS)
    third = second + tl.cdiv(m1, ROWS)
    # Each branch has its own body, because pointers merged after a branch lose their alignment.
    if at < second:
        expand_rows(c0_ptr, index0_ptr, out0_ptr, at * ROWS, m0, r0, stride0, ROWS, BLOCK)
    elif COUNT > 1 and at < third:
        expand_rows(c1_ptr, index1_ptr, out1_ptr, (at - second) * ROWS, m1, r1, stride1, ROWS, BLOCK)
    elif COUNT > 2:
        expand_rows(c2_ptr, index2_ptr, out2_ptr, (at - third) * ROWS, m2, r2, stride2, ROWS, BLOCK)


def _prepare(Cs: Sequence[Tensor], indices: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    count, dtype, device = len(Cs), Cs[0].dtype, Cs[0].device
    # One launch has a limited number of members and needs contiguous rows: split or copy otherwise.
    if count > MOST_MEMBERS:
        rest = _prepare(Cs[MOST_MEMBERS:], indices[MOST_MEMBERS:])
        these = _prepare(Cs[:MOST_MEMBERS], indices[:MOST_MEMBERS])
        return lambda Cs, indices: [
            *these(Cs[:MOST_MEMBERS], indices[:MOST_MEMBERS]),
            *rest(Cs[MOST_MEMBERS:], indices[MOST_MEMBERS:]),
        ]
    if any(C.stride(1) != 1 and C.shape[1] > 1 for C in Cs):
        rows = _prepare([C.contiguous() for C in Cs], indices)
        return lambda Cs, indices: rows([C.contiguous() for C in Cs], indices)
    # The launch for all members.
    ms, rs = [len(index) for index in indices], [C.shape[1] for C in Cs]
    shapes, missing = list(zip(ms, rs, strict=True)), [0] * (MOST_MEMBERS - count)
    overlapping = has_tma(device) and not INTERPRETED
    launch = Launch(
        expand_kernel,
        (sum(triton.cdiv(m, ROWS) for m in ms),),
        (*ms, *missing, *rs, *missing, *(C.stride(0) for C in Cs), *missing),
        tensors=[f"{kind}{i}_ptr" for kind in ("c", "index", "out") for i in range(count)],
        COUNT=count,
        PDL=overlapping,
        **({"launch_pdl": True} if overlapping else {}),
        ROWS=ROWS,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )

    def run(Cs, indices):
        Bs = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
        launch(*Cs, *indices, *Bs)
        return Bs

    return run


expand = Plans(_prepare)
"""B_i [m_i, r_i] with the rows of [I, C_i] in y's order, of several C_i [m_i - r_i, r_i] and index_i [m_i] (the
inverse of the permutation, int32)."""
