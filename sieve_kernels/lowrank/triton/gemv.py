"""GEMV operators on a GPU: two launches for a pair, for one layer or for several layers of one input."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import triton
from torch import Tensor

from sieve_kernels.common import tiles
from sieve_kernels.core import dispatch
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.lowrank import torch_backend, torch_backend_gpu
from sieve_kernels.lowrank.permutation import places
from sieve_kernels.lowrank.triton.gemv_launch import MOST_MEMBERS, Places, Product, make_launch

MOST_ROWS = dispatch.GEMV_ROWS_GPU
"""Most rows of these kernels."""

ANY_SIZE = 16
"""Most rows for weights of any size; up to `MOST_ROWS` rows are supported if the weights are small."""

SMALL_BYTES = 32 << 20
"""Most bytes of small weights. Measured on an H100 at 32 rows: .83 of the time of two library products for 17 MB, 1.05
for 59 MB."""


def serves(x: Tensor, *weights: Tensor) -> bool:
    """Whether these kernels support the call: few rows of 16-bit elements, all aligned to 16 bytes."""
    rows = x.numel() // max(1, x.shape[-1])
    if x.dtype not in (torch.bfloat16, torch.float16) or not 1 <= rows <= MOST_ROWS:
        return False
    if rows > ANY_SIZE and sum(weight.nbytes for weight in weights) > SMALL_BYTES:
        return False
    return row_stride(x) is not None and all(_aligned(t) for t in (x, *weights))


def row_stride(x: Tensor) -> int | None:
    """The stride of the rows of x [..., n], if all have the same and their elements are contiguous; else None."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        return None
    if x.dim() == 1:
        return x.shape[0]
    stride, size = x.stride(-2), x.shape[-2]
    for axis in range(x.dim() - 3, -1, -1):
        if x.shape[axis] != 1:
            if size > 1 and x.stride(axis) != stride * size:
                return None
            stride = x.stride(axis) if size == 1 else stride
            size *= x.shape[axis]
    return stride


def _aligned(t: Tensor) -> bool:
    one_row = t.numel() == t.shape[-1]
    return t.stride(-1) == 1 and t.data_ptr() % 16 == 0 and (one_row or t.stride(-2) * t.itemsize % 16 == 0)


def columns(ranks: Sequence[int]) -> tuple[list[int], int]:
    """First columns of intermediates of these ranks in one tensor, each a multiple of 16, and the tensor's width."""
    at, width = [], 0
    for rank in ranks:
        at.append(width)
        width += triton.cdiv(rank, 16) * 16
    return at, width


def allocation(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """A function that allocates a tensor; strides computed in advance save host time."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return partial(torch.empty_strided, tuple(shape), strides, dtype=tiles.compute_dtype(dtype), device=device)


def _prepare_group(
    x: Tensor,
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    permutations: Sequence[Tensor] | None = None,
) -> Callable:
    """Two launches for all layers: first every z_i = x A_iᵀ, into one tensor, then every y_i."""
    if len(As) > MOST_MEMBERS or not serves(x, *As, *Bs):
        return torch_backend_gpu.group.prepare(x, As, Bs, biases, permutations)
    dtype, ranks, pivoted = x.dtype, [A.shape[0] for A in As], permutations is not None
    first, second, make_z, make_ys = _pairs(x, As, Bs, pivoted, biases is not None)

    def run(x, As, Bs, biases, permutations=None):
        biases = biases or ()
        z, ys = make_z(), [make() for make in make_ys]
        if pivoted:
            # Before the first launch, which waits for them: the second reads them without waiting.
            ours, others = zip(*map(places, permutations, ranks), strict=True)
            first(x, *As, *ours, *biases, *[z] * len(As), *ys)
            second(rounded(z, dtype), *Bs, *others, *biases, *ys)
        else:
            first(x, *As, *[z] * len(As))
            second(rounded(z, dtype), *Bs, *biases, *ys)
        return [rounded(y, dtype) for y in ys]

    return run


def _pairs(
    x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor], pivoted: bool, biased: bool
) -> tuple[Launch, Launch, Callable[[], Tensor], list[Callable[[], Tensor]]]:
    """Both launches of pairs that read x, and what makes z, where their intermediates lie side by side, and every y."""
    T, ranks = rows_of(x)[0], [A.shape[0] for A in As]
    at, width = columns(ranks)
    heights = [B.shape[0] + r * pivoted for B, r in zip(Bs, ranks, strict=True)]
    first = intermediates(x, As, heights if pivoted else None, biased)
    parts = zip(heights, ranks, Bs, at, strict=True)
    second = make_launch(
        T,
        width,
        [Product(B.shape[0], r, B.stride(0), m, x_at=here) for m, r, B, here in parts],
        x.device,
        x.dtype,
        early=True,
        into=Places.INDEXED if pivoted else Places.IN_ORDER,
        biased=biased,
    )
    make_ys = [allocation((*x.shape[:-1], m), x.dtype, x.device) for m in heights]
    return first, second, allocation((T, width), x.dtype, x.device), make_ys


def intermediates(
    x: Tensor, As: Sequence[Tensor], heights: Sequence[int] | None = None, biased: bool = False
) -> Launch:
    """The launch of every z_i = x A_iᵀ, side by side as `columns` has it; it takes x, the A_i, and z for each. With
    heights it writes z_i also to places of y_i, which has so many columns, as `make_launch` has it."""
    (T, n), (at, width) = rows_of(x), columns([A.shape[0] for A in As])
    products = [
        Product(A.shape[0], n, A.stride(0), width, out_at=here, stride_copy=height)
        for A, here, height in zip(As, at, heights or [0] * len(As), strict=True)
    ]
    options = {} if heights is None else {"into": Places.BOTH, "biased": biased}
    return make_launch(T, row_stride(x), products, x.device, x.dtype, early=False, **options)


def rows_of(x: Tensor) -> tuple[int, int]:
    """The number of rows of x [..., n], and n."""
    return x.numel() // x.shape[-1], x.shape[-1]


def rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    """In the interpreter, convert what kernels stored in float32 to the dtype that hardware stores."""
    return t if t.dtype is dtype else t.to(dtype)


def _prepare_pair(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Callable:
    if not serves(x, A, B):
        return torch_backend.linear
    first, second, make_z, (make_y,) = _pairs(x, [A], [B], False, bias is not None)
    dtype = x.dtype

    def run(x, A, B, bias):
        z, y = make_z(), make_y()
        first(x, A, z)
        if bias is None:
            second(rounded(z, dtype), B, y)
        else:
            second(rounded(z, dtype), B, bias, y)
        return rounded(y, dtype)

    return run


def _prepare_pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Callable:
    if not serves(x, A, C):
        return torch_backend_gpu.pivoted
    first, second, make_z, (make_y,) = _pairs(x, [A], [C], True, bias is not None)
    dtype, r = x.dtype, A.shape[0]

    def run(x, A, C, permutation, bias):
        # Before the first launch, which waits for them: the second reads them without waiting.
        ours, others = places(permutation, r)
        z, y = make_z(), make_y()
        if bias is None:
            first(x, A, ours, z, y)
            second(rounded(z, dtype), C, others, y)
        else:
            first(x, A, ours, bias, z, y)
            second(rounded(z, dtype), C, others, bias, y)
        return rounded(y, dtype)

    return run


def _prepare_dense(x: Tensor, W: Tensor, bias: Tensor | None) -> Callable:
    """One launch."""
    if not serves(x, W):
        return torch_backend.dense
    (T, n), m, dtype = rows_of(x), W.shape[0], x.dtype
    products = [Product(m, n, W.stride(0), m)]
    launch = make_launch(T, row_stride(x), products, x.device, dtype, early=False, biased=bias is not None)
    make_y = allocation((*x.shape[:-1], m), dtype, x.device)

    def run(x, W, bias):
        y = make_y()
        if bias is None:
            launch(x, W, y)
        else:
            launch(x, W, bias, y)
        return rounded(y, dtype)

    return run


group = Plans(_prepare_group)
"""y_i [..., m_i] of x [..., n], factors A_i [r_i, n], B_i [m_i, r_i], biases [m_i] or None, up to MOST_MEMBERS of them;
with permutations [m_i] of pivoted pairs, whose second factors are [m_i - r_i, r_i]."""

linear = Plans(_prepare_pair)
"""y [..., m] of x [..., n], A [r, n], B [m, r] and bias [m] or None."""

pivoted = Plans(_prepare_pivoted)
"""y [..., m] of x [..., n], A [r, n], C [m - r, r], permutation [m] and bias [m] or None."""

dense = Plans(_prepare_dense)
"""y [..., m] of x [..., n], W [m, n] and bias [m] or None."""
