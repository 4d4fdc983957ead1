"""GPU path of the low-rank family for many rows: the library's products, which are fastest there, and few copies.

Operators that need no change are the CPU's (`torch_backend.py`). Blocks of tokens, which keep intermediates in a CPU's
cache, would only cost launches here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor

from sieve_kernels.core.checks import as_rows
from sieve_kernels.core.plans import Plans, once
from sieve_kernels.core.streams import either, side_by_side
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.lowrank.torch_backend import linear, product
from sieve_kernels.pointwise.columns import gather_columns, join_columns

_unsafe_view = torch.ops.aten._unsafe_view.default

try:
    from sieve_kernels.lowrank.triton_expand import expand
except ModuleNotFoundError:

    def expand(Cs: Sequence[Tensor], indices: Sequence[Tensor]) -> list[Tensor]:
        """B_i [m_i, r_i] with the rows of [I, C_i] in y's order; C_i [m_i - r_i, r_i], index_i [m_i]."""
        units = [torch.eye(C.shape[1], dtype=C.dtype, device=C.device) for C in Cs]
        return [torch.cat(parts).index_select(0, index) for *parts, index in zip(units, Cs, indices, strict=True)]


OPERATIONS_A_BYTE = 290
"""Operations of a 16-bit library product in the time in which a copying kernel moves a byte, on an H100."""


def expands(T: int, m: int, r: int, dtype: torch.dtype) -> bool:
    """Whether a pivoted pair with T rows is multiplied by its whole second factor [m, r], made for the call.

    That costs r² more multiplications per row, but moves B once instead of T rows of y.
    """
    saved = 4 * m - 2 * r * r / OPERATIONS_A_BYTE  # per row: bytes, and operations converted to bytes
    return dtype.itemsize == 2 and T * saved > 2 * r * (2 * m - r)


def _prepare_group(
    x: Tensor,
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    permutations: Sequence[Tensor] | None = None,
) -> Callable[..., list[Tensor]]:
    """A function of the same arguments: library products layer by layer, on parallel streams where that pays.

    Concatenated factors would need fewer products, but a second copy of the weights.
    """
    rows = x.numel() // max(1, x.shape[-1])
    return either(partial(_group_run, x, As, Bs, permutations), len(As), rows, x.device)


def _group_run(
    x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], permutations: Sequence[Tensor] | None, overlapping: bool
) -> Callable[..., list[Tensor]]:
    """`_prepare_group`'s function, for layers that run in parallel or one after another."""
    none, rows, device = (None,) * len(As), x.numel() // max(1, x.shape[-1]), x.device
    ranks = [A.shape[0] for A in As]
    widths = [B.shape[0] + (0 if permutations is None else r) for B, r in zip(Bs, ranks, strict=True)]
    shapes = [(*x.shape[:-1], width) for width in widths]
    whole = [permutations is not None and expands(rows, m, r, x.dtype) for m, r in zip(widths, ranks, strict=True)]
    make_whole = once(expand)
    joins = [None if permutations is None or one else once(join_columns) for one in whole]

    def run(x, As, Bs, biases, permutations=None):
        indices, tokens = none, as_rows(x) if overlapping or permutations is not None else x
        # Allocate outputs on the stream that reads them next.
        outs = [outputs(tokens, width) for width in widths] if overlapping else none
        if permutations is not None:
            indices = [inverse(permutation) for permutation in permutations]
            Bs = _made_whole(make_whole, Bs, indices, whole)
        layers = zip(As, Bs, biases or none, indices, joins, outs, strict=True)
        works = [partial(_layer, tokens, *layer) for layer in layers]
        ys = side_by_side(works, rows, device) if overlapping else [work() for work in works]
        return [shaped(y, shape) for y, shape in zip(ys, shapes, strict=True)]

    return run


def shaped(y: Tensor, shape: Sequence[int]) -> Tensor:
    """y, which has no other owner, in this shape; never a view, which could not be changed in place."""
    return y if y.shape == shape else _unsafe_view(y, shape)


def _made_whole(
    make: Callable, Cs: Sequence[Tensor], indices: Sequence[Tensor], which: Sequence[bool]
) -> Sequence[Tensor]:
    """The second factors, with those in `which` expanded to whole ones."""
    if not any(which):
        return Cs
    made = iter(make(list(compress(Cs, which)), list(compress(indices, which))))
    return [next(made) if one else C for C, one in zip(Cs, which, strict=True)]


def _layer(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    join: Callable | None,
    out: Tensor | None,
) -> Tensor:
    """y [T, m] of x [T, n], in `out` if given; with `join` B is C, and the columns of [z, z Cᵀ] are those of the index.
    Without both x may be [..., n]."""
    z = F.linear(x, A)
    return product(z, B, bias, out) if join is None else join(z, F.linear(z, B), index, bias, out)


group = Plans(_prepare_group)
"""y_i [..., m_i] of several layers of x [..., n]: pairs (A_i [r_i, n], B_i [m_i, r_i], bias_i [m_i] or None), or with
permutations_i [m_i] pivoted pairs, whose B_i is C_i [m_i - r_i, r_i]."""


def _prepare_pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Callable:
    run = _group_run(x, [A], [C], [permutation], overlapping=False)
    return lambda x, A, C, permutation, bias: run(x, (A,), (C,), (bias,), (permutation,))[0]


pivoted = Plans(_prepare_pivoted)
"""y [..., m], y[..., permutation] = [z, z Cᵀ] + bias[permutation], z = x Aᵀ, of x [..., n], A [r, n], C [m - r, r],
permutation [m] int64, bias [m] or None."""


def outputs(x: Tensor, width: int) -> Tensor:
    """An unwritten tensor [T, width]; x [T, n]."""
    # With 16-bit rows of odd length a CPU library multiplies the element after a row by zero: it must not be NaN.
    return (x.new_empty if x.is_cuda else x.new_zeros)((x.shape[0], width))


def halves_(out: Tensor, x: Tensor, A: Tensor, C: Tensor) -> Tensor:
    """out [T, m] = [z, z Cᵀ], z = x Aᵀ, each half written where it belongs; x [T, n], A [r, n], C [m - r, r]."""
    z, rest = out.split_with_sizes((A.shape[0], C.shape[0]), 1)
    torch.mm(x, A.t(), out=z)
    torch.mm(z, C.t(), out=rest)
    return out


def pivoted_expanded(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Tensor:
    """`pivoted` by the whole second factor, made for this call: no columns move, for r² more multiplications per
    row."""
    B = expand((C,), (inverse(permutation),))[0] if x.is_cuda else expanded(C, permutation)
    return linear(x, A, B, bias)


def expanded(C: Tensor, permutation: Tensor) -> Tensor:
    """B [m, r] with the rows of [I, C] in y's order; C [m - r, r], permutation [m]."""
    m, r = len(permutation), C.shape[1]
    B = C.new_zeros((m, r))
    B.view(-1).index_fill_(0, permutation[:r] * r + torch.arange(r, device=C.device), 1)
    return B.index_copy_(0, permutation[r:], C)


def pivoted_backward(
    grad: Tensor, x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of x [..., n], A [r, n] and C [m - r, r], those that are needed; grad [..., m]. Recomputes z = x Aᵀ."""
    return halves_backward(gather_columns(as_rows(grad), permutation), x, A, C, needed)


def halves_backward(grad: Tensor, x: Tensor, A: Tensor, C: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of x [..., n], A and C, those that are needed, given that of `halves_`, grad [T, m]."""
    tokens, r = as_rows(x), A.shape[0]
    direct, through = grad[:, :r], grad[:, r:]
    gradients = []
    if needed[0] or needed[1]:
        dz = torch.addmm(direct, through, C)
        gradients += [(dz @ A).view(x.shape)] if needed[0] else []
        gradients += [dz.T @ tokens] if needed[1] else []
    if needed[2]:
        gradients += [through.T @ (tokens @ A.T)]
    return gradients
