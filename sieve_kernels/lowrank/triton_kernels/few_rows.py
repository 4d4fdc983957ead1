"""Operators of a few rows on a GPU: two launches for a pair, of one layer or of several that read one input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels import dispatch, tiles
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.lowrank import cpu as library
from sieve_kernels.lowrank.permutation import inverse
from sieve_kernels.lowrank.triton_kernels.few_rows_kernel import few_rows_kernel
from sieve_kernels.lowrank.triton_kernels.quantized import quantized as of_any_bits

MOST_ROWS = dispatch.FEW_ROWS_GPU
"""More rows take other kernels."""

MOST_MEMBERS = 3
"""Products in one launch: query, key and value."""

OVERLAP_GEMV, OVERLAP_DOT = 1 + 2 + 4, 1
"""How launches overlap on GPUs that can, as `few_rows_kernel.begin` has it."""


@dataclass(frozen=True)
class Config:
    """Tile of a program: BLOCK_N rows of the weight, SPLIT_K · BLOCK_K of their elements a step."""

    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Product:
    """One of the products of a launch: out[:, out_at:][:, :N] = x[:, x_at:][:, :K] wᵀ, w [N, K].

    With `gathered`, w is [N - K, K] and the columns are those of [x, x wᵀ] that an index names.
    """

    N: int
    K: int
    stride_w: int
    stride_out: int
    x_at: int = 0
    out_at: int = 0


def config(T: int, N: int, K: int, bits: int, device: torch.device) -> Config:
    """The tile for T rows, and N rows of K elements of the weights in all products of a launch together.

    What was fastest on an H100 over the shapes of an 8B model: one row takes 4 KiB of a row of the weight at a time, or
    several short rows; more rows take tiles of 16, or of 8 where there are few. Elsewhere as much of it as fits.
    """
    if T == 1:
        at_once = 16 // bits  # rows of 8 bits are half as long
        if K > 1536:
            return Config(at_once, 2048, 1, 4, 1)
        return Config(4, 512 * at_once if K <= 768 else 1024 * at_once, 1, 4, 1)
    amd = torch.version.hip is not None
    if 16 * dispatch.processors(device) >= N and not amd:  # AMD's instructions have no tile of 8
        tile = Config(8, 128, 4, 4, 4)
    elif K > 2048:
        tile = Config(16, 128, 4, 4, 4)
    else:
        tile = Config(16, 128, 2, 2, 4)
    # Stages of both operands lie in shared memory.
    step = tile.split_k * tile.block_k * (tile.block_n * bits // 8 + rows_of_tile(T) * 2)
    stages = min(tile.num_stages, 2 if amd else tile.num_stages, shared_memory(device) // step)
    if stages < 2:
        return replace(tile, block_k=tile.block_k // 2, num_stages=2)
    return replace(tile, num_stages=stages)


def rows_of_tile(T: int) -> int:
    """Rows of x in a tile: one for CUDA cores, else what tensor cores take."""
    return 1 if T == 1 else max(16, triton.next_power_of_2(T))


def shared_memory(device: torch.device) -> int:
    """Bytes that a program can have; in the interpreter as many as on a small GPU."""
    if tiles.INTERPRETED:
        return 64 << 10
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def make_launch(
    T: int,
    stride_x: int,
    products: Sequence[Product],
    device: torch.device,
    early: bool,
    bits: int = 16,
    gathered: bool = False,
    scaled: bool = False,
    biased: bool = False,
    tile: Config | None = None,
) -> Launch:
    """The launch of these products; it takes x, then of each of MOST_MEMBERS products (or None) the weights, scales,
    indices, biases and outputs. `early`: the launch before is one of ours, and no weight is written by it."""
    tile = tile or config(T, sum(p.N for p in products), max(p.K for p in products), bits, device)
    padded = [*products, *[Product(1, 1, 1, 1)] * (MOST_MEMBERS - len(products))]
    return Launch(
        few_rows_kernel,
        (sum(triton.cdiv(p.N, tile.block_n) for p in products),),
        (
            T,
            stride_x,
            *(p.K for p in padded),
            *(p.N for p in padded),
            *(p.x_at for p in padded),
            *(p.out_at for p in padded),
            *(p.stride_w for p in padded),
            *(p.stride_out for p in padded),
        ),
        COUNT=len(products),
        GATHER=gathered,
        SCALED=scaled,
        BIASED=biased,
        EARLY=early,
        EVEN_K=all(p.K % (tile.block_k * tile.split_k) == 0 for p in products),
        **constants(T, tile, bits, device),
    )


def constants(T: int, tile: Config, bits: int, device: torch.device) -> dict[str, object]:
    """What kernels are told of rows, tile, bits of an element of the weights, and overlapping launches."""
    overlap = (OVERLAP_GEMV if T == 1 else OVERLAP_DOT) if tiles.has_tma(device) else 0
    return {
        "OVERLAP": overlap,
        "UPCAST": tiles.INTERPRETED,
        "ACC": tl.float32,
        "BLOCK_T": rows_of_tile(T),
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "SPLIT_K": tile.split_k,
        "VECTOR": 128 // bits,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        **({"launch_pdl": True} if overlap else {}),
    }


def serves(x: Tensor, *weights: Tensor) -> bool:
    """Whether these kernels can take the call: few rows, of 16 bits, all rows aligned to 16 bytes."""
    if x.dtype not in (torch.bfloat16, torch.float16) or not 1 <= x.numel() // max(1, x.shape[-1]) <= MOST_ROWS:
        return False
    return row_stride(x) is not None and all(_aligned(t) for t in (x, *weights))


def row_stride(x: Tensor) -> int | None:
    """The distance of rows of x [..., n] if it is the same for all of them and their elements are neighbours."""
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
    """Where intermediates of these ranks begin side by side, each at a multiple of 16, and their width together."""
    at, width = [], 0
    for rank in ranks:
        at.append(width)
        width += triton.cdiv(rank, 16) * 16
    return at, width


def three(tensors: Sequence[Tensor | None] | None) -> tuple[Tensor | None, ...]:
    """As many tensors as a launch takes of each kind."""
    return (*(tensors or ()), *(None,) * (MOST_MEMBERS - len(tensors or ())))


ABSENT = three(None)


def _prepare_group(
    x: Tensor,
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    permutations: Sequence[Tensor] | None = None,
) -> Callable:
    """Two launches for all layers: every z_i = x A_iᵀ, side by side, then every y_i."""
    if len(As) > MOST_MEMBERS or not serves(x, *As, *Bs):
        return library.group if permutations is None else _one_by_one
    dtype, device, compute = x.dtype, x.device, tiles.compute_dtype(x.dtype)
    ranks, T = [A.shape[0] for A in As], rows_of(x)[0]
    at, width = columns(ranks)
    first = intermediates(x, As)
    heights = [B.shape[0] + (0 if permutations is None else r) for B, r in zip(Bs, ranks, strict=True)]
    second = make_launch(
        T,
        width,
        [Product(m, r, B.stride(0), m, x_at=here) for m, r, B, here in zip(heights, ranks, Bs, at, strict=True)],
        device,
        early=True,
        gathered=permutations is not None,
        biased=biases is not None,
    )
    shapes = [(*x.shape[:-1], m) for m in heights]

    def run(x, As, Bs, biases, permutations=None):
        # Before the first launch, which waits for it: the second reads it without waiting.
        index = None if permutations is None else [inverse(p) for p in permutations]
        z = torch.empty((T, width), dtype=compute, device=device)
        first(x, *three(As), *ABSENT, *ABSENT, *ABSENT, *three([z] * len(As)))
        ys = [torch.empty(shape, dtype=compute, device=device) for shape in shapes]
        second(rounded(z, dtype), *three(Bs), *ABSENT, *three(index), *three(biases), *three(ys))
        return [rounded(y, dtype) for y in ys]

    return run


def _one_by_one(x, As, Bs, biases, permutations):
    biases = biases or [None] * len(As)
    return [library.pivoted(x, *of) for of in zip(As, Bs, permutations, biases, strict=True)]


def intermediates(x: Tensor, As: Sequence[Tensor]) -> Launch:
    """The launch of every z_i = x A_iᵀ, side by side as `columns` has it."""
    (T, n), (at, width) = rows_of(x), columns([A.shape[0] for A in As])
    products = [Product(A.shape[0], n, A.stride(0), width, out_at=here) for A, here in zip(As, at, strict=True)]
    return make_launch(T, row_stride(x), products, x.device, early=False)


def rows_of(x: Tensor) -> tuple[int, int]:
    """Rows of x [..., n], and n."""
    return x.numel() // x.shape[-1], x.shape[-1]


def rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    """In the interpreter, what kernels stored in float32 in the dtype that hardware stores."""
    return t if t.dtype is dtype else t.to(dtype)


def _prepare_pair(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Callable:
    if not serves(x, A, B):
        return library.linear
    run = _prepare_group(x, (A,), (B,), None if bias is None else (bias,))
    return lambda x, A, B, bias: run(x, (A,), (B,), None if bias is None else (bias,))[0]


def _prepare_pivoted(x: Tensor, A: Tensor, C: Tensor, permutation: Tensor, bias: Tensor | None) -> Callable:
    if not serves(x, A, C):
        return library.pivoted
    run = _prepare_group(x, (A,), (C,), None if bias is None else (bias,), (permutation,))
    return lambda x, A, C, permutation, bias: run(x, (A,), (C,), None if bias is None else (bias,), (permutation,))[0]


def _prepare_dense(x: Tensor, W: Tensor, bias: Tensor | None) -> Callable:
    """One launch."""
    if not serves(x, W):
        return library.dense
    dtype, device, compute = x.dtype, x.device, tiles.compute_dtype(x.dtype)
    (T, n), m = rows_of(x), W.shape[0]
    launch = make_launch(
        T, row_stride(x), [Product(m, n, W.stride(0), m)], device, early=False, biased=bias is not None
    )
    shape = (*x.shape[:-1], m)

    def run(x, W, bias):
        y = torch.empty(shape, dtype=compute, device=device)
        launch(x, *three([W]), *ABSENT, *ABSENT, *three([bias]), *three([y]))
        return rounded(y, dtype)

    return run


def _prepare_quantized(
    x: Tensor, A_q: Tensor, A_scale: Tensor, B_q: Tensor, B_scale: Tensor, bias: Tensor | None
) -> Callable:
    """Two launches, for factors of 8 bits: integers are exact in every dtype, and scales multiply sums."""
    if A_q.dtype != torch.int8 or B_q.dtype != torch.int8 or not serves(x, A_q, B_q):
        return of_any_bits
    dtype, device, compute = x.dtype, x.device, tiles.compute_dtype(x.dtype)
    (T, n), (m, r) = rows_of(x), B_q.shape
    _, width = columns([r])
    options = {"bits": 8, "scaled": True}
    products = [Product(r, n, A_q.stride(0), width)]
    first = make_launch(T, row_stride(x), products, device, early=False, **options)
    products = [Product(m, r, B_q.stride(0), m)]
    second = make_launch(T, width, products, device, early=True, biased=bias is not None, **options)
    shape = (*x.shape[:-1], m)

    def run(x, A_q, A_scale, B_q, B_scale, bias):
        z = torch.empty((T, width), dtype=compute, device=device)
        first(x, *three([A_q]), *three([A_scale]), *ABSENT, *ABSENT, *three([z]))
        y = torch.empty(shape, dtype=compute, device=device)
        second(rounded(z, dtype), *three([B_q]), *three([B_scale]), *ABSENT, *three([bias]), *three([y]))
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

quantized = Plans(_prepare_quantized)
"""y [..., m] of x [..., n], factors int8 [r, n] and [m, r] with scales [r] and [m], and bias [m] or None."""
