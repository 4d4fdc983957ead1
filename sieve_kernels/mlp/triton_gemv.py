"""GEMV for gated layers on a GPU: gate and up are combined in registers, and an MLP of pairs takes four launches."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import triton
import triton.language as tl
from torch import Tensor

from sieve_kernels.autotune.config import GemmConfig, GemmShape, TunedKernel
from sieve_kernels.core.launch import Launch
from sieve_kernels.core.plans import Plans
from sieve_kernels.lowrank.permutation import inverse, places
from sieve_kernels.lowrank.triton import gemv, gemv_launch
from sieve_kernels.lowrank.triton.gemv import allocation, columns, rounded, row_stride, rows_of
from sieve_kernels.lowrank.triton.gemv_launch import ALIGNED, SECOND, Places, Product, make_launch
from sieve_kernels.lowrank.triton.gemv_product import product_tile
from sieve_kernels.mlp import reference, torch_backend_gpu
from sieve_kernels.mlp.triton_backend import activate

Layer = Sequence[Tensor]
"""As `lowrank_mlp` takes it: (W,), (A, B) or (A, C, permutation)."""


@triton.jit
def gemv_glu_kernel(
    xg_ptr,  # [T, Kg], the input of the gate's last factor
    xu_ptr,  # [T, Ku]
    wg_ptr,  # [N, Kg], or [N - Kg, Kg] if GATHER_G
    wu_ptr,
    index_g_ptr,  # [N], as `product_tile` has it
    index_u_ptr,
    out_ptr,  # [T, N]
    T,
    N,
    Kg,
    Ku,
    xg_at,  # the column of xg where the input begins, a multiple of 16
    xu_at,
    up_at,  # the row of wu (or of its index) where up begins
    out_at,  # where out begins, a multiple of 16
    stride_xg,  # in units of 16 bytes, like all strides here
    stride_xu,
    stride_wg,
    stride_wu,
    ACTIVATION: tl.constexpr,
    GATHER_G: tl.constexpr,
    GATHER_U: tl.constexpr,
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    WHOLE_VECTORS: tl.constexpr,
    ONE_STEP: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """out = act(gate) · up. Grid: (tiles of out,)."""
    # Gates; the product waits for its input.
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate, _, _ = product_tile(
        xg_ptr + xg_at,
        wg_ptr,
        None,
        index_g_ptr,
        None,
        cols,
        T,
        Kg,
        N,
        stride_xg,
        stride_wg,
        GATHER_G,
        False,
        False,
        False,
        EARLY,
        OVERLAP,
        EVEN_K,
        WHOLE_VECTORS,
        ONE_STEP,
        UPCAST,
        ACC,
        BLOCK_T,
        BLOCK_N,
        BLOCK_K,
        SPLIT_K,
        VECTOR,
    )
    # Ups of the same columns, without another wait.
    up, _, _ = product_tile(
        xu_ptr + xu_at,
        wu_ptr,
        None,
        index_u_ptr,
        None,
        cols + up_at,
        T,
        Ku,
        N + up_at,
        stride_xu,
        stride_wu,
        GATHER_U,
        False,
        False,
        False,
        EARLY,
        0,
        EVEN_K,
        WHOLE_VECTORS,
        ONE_STEP,
        UPCAST,
        ACC,
        BLOCK_T,
        BLOCK_N,
        BLOCK_K,
        SPLIT_K,
        VECTOR,
    )
    # Combine them.
    t = tl.arange(0, BLOCK_T)
    at = out_ptr + out_at + t[None, :].to(tl.int64) * N + cols[:, None]
    y = activate(gate, ACTIVATION) * up
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=(cols < N)[:, None] & (t < T)[None, :])


def _prepare_inner(x: Tensor, layers: Sequence[Layer], activation: str, out_at: int) -> tuple[Callable, int]:
    """A function of (x, layers, z, out) that writes act(gate) · up [T, m] to out, from its element `out_at` on, in at
    most two launches; and how many elements of z lie between them.

    Args: layers: gate and up, or the one layer that is both, all gates before all ups.
    """
    factors = [layer[0] for layer in layers if len(layer) > 1]
    first = gemv.intermediates(x, factors) if factors else None
    starts, width = columns([A.shape[0] for A in factors])
    (T, n), m, dtype = rows_of(x), middle_of(layers), x.dtype
    at = iter(starts)
    products = [
        Product(m, n, layer[0].stride(0), m)
        if len(layer) == 1
        else Product(m, layer[1].shape[1], layer[1].stride(0), m, x_at=next(at))
        for layer in layers
    ]
    second = _launch(T, products, layers, row_stride(x), width, activation, out_at, x, early=first is not None)

    def run(x, layers, z, out):
        # Before the first launch, which waits for them: the second reads them without waiting.
        indices = [inverse(layer[2]) if len(layer) == 3 else None for layer in layers]
        if first is not None:
            As = [layer[0] for layer in layers if len(layer) > 1]
            first(x, *As, *[z] * len(As))
            z = rounded(z, dtype)
        inputs = [x if len(layer) == 1 else z for layer in layers]
        weights = [layer[0] if len(layer) == 1 else layer[1] for layer in layers]
        second(inputs[0], inputs[-1], weights[0], weights[-1], indices[0], indices[-1], out)

    return run, T * width


def middle_of(layers: Sequence[Layer]) -> int:
    """Number of hidden units; gates and ups are the outputs of two layers or of one."""
    return reference.width(layers[0]) // (3 - len(layers))


def _launch(
    T: int,
    products: Sequence[Product],
    layers: Sequence[Layer],
    stride_x: int,
    stride_z: int,
    activation: str,
    out_at: int,
    x: Tensor,
    early: bool,
    config: GemmConfig | None = None,
) -> Launch:
    """The launch of act(gate) · up; it takes their inputs, weights, indices, and the output."""
    gate, up = products[0], products[-1]
    if config is None:
        traits = frozenset((SECOND,)) if early else frozenset()
        config = GEMV_GLU.choose(GemmShape(T, (gate.N, gate.N), (gate.K, up.K), x.dtype, x.device, traits=traits))
    strides = [stride_x if len(layer) == 1 else stride_z for layer in layers]
    return Launch(
        gemv_glu_kernel,
        (triton.cdiv(gate.N, config.block_n),),
        (
            T,
            gate.N,
            gate.K,
            up.K,
            gate.x_at,
            up.x_at,
            gate.N if len(products) == 1 else 0,
            out_at,
            *(stride // ALIGNED for stride in (strides[0], strides[-1], gate.stride_w, up.stride_w)),
        ),
        ACTIVATION=activation,
        GATHER_G=len(layers[0]) == 3,
        GATHER_U=len(layers[-1]) == 3,
        EARLY=early,
        **gemv_launch.constants(T, [p.K for p in products], config, 16, x.device, early),
    )


def _glu_config(shape: GemmShape) -> GemmConfig:
    """The config of a single product. For one row a program takes half as many rows of each weight, as it reads two."""
    config = gemv_launch.gemv_config(shape)
    return replace(config, block_n=max(1, config.block_n // 2)) if shape.M == 1 else config


GEMV_GLU = TunedKernel("gemv_glu", _glu_config, gemv_launch.CONFIGS, gemv_launch.supports)


def _prepare_swiglu(x: Tensor, A_gate: Tensor, B_gate: Tensor, A_up: Tensor, B_up: Tensor, activation: str) -> Callable:
    if not gemv.serves(x, A_gate, B_gate, A_up, B_up):
        return torch_backend_gpu.swiglu
    inner, size = _prepare_inner(x, ((A_gate, B_gate), (A_up, B_up)), activation, 0)
    dtype, make_z = x.dtype, allocation((size,), x.dtype, x.device)
    make_y = allocation((*x.shape[:-1], B_gate.shape[0]), dtype, x.device)

    def run(x, A_gate, B_gate, A_up, B_up, _):
        z, y = make_z(), make_y()
        inner(x, ((A_gate, B_gate), (A_up, B_up)), z, y)
        return rounded(y, dtype)

    return run


def _prepare_mlp(x: Tensor, layers: Sequence[Layer], activation: str) -> Callable:
    """Two launches for act(gate) · up, and one or two for down, which read their weights before they wait.

    All intermediates are one tensor, because an allocation takes half the host time of a launch.
    """
    *inner, down = layers
    if not gemv.serves(x, *chain(*(layer[:2] for layer in layers))) or middle_of(inner) % ALIGNED:
        return torch_backend_gpu.mlp
    (T, _), m, k, dtype, paired = rows_of(x), middle_of(inner), reference.width(down), x.dtype, len(down) > 1
    _, between = columns([layer[0].shape[0] for layer in inner if len(layer) > 1])
    middle, h_at = _prepare_inner(x, inner, activation, T * between)
    z_at, width = h_at + triton.cdiv(T * m, 16) * 16, columns([down[0].shape[0]])[1]
    pivoted, r = len(down) == 3, down[0].shape[0]
    into = {"stride_out": width, "out_at": z_at, "stride_copy": k} if paired else {"stride_out": k}
    products = [Product(r, m, down[0].stride(0), x_at=h_at, **into)]
    options = {"into": Places.BOTH} if pivoted else {}
    first = make_launch(T, m, products, x.device, dtype, early=True, **options)
    second = None
    if paired:
        products = [Product(down[1].shape[0], r, down[1].stride(0), k, x_at=z_at)]
        options = {"into": Places.INDEXED} if pivoted else {}
        second = make_launch(T, width, products, x.device, dtype, early=True, **options)
    make_scratch = allocation((z_at + T * width,), dtype, x.device)
    make_y = allocation((*x.shape[:-1], k), dtype, x.device)

    def run(x, layers, _):
        *inner, down = layers
        # Before the first launch, as in `_prepare_inner`.
        ours, others = places(down[2], r) if pivoted else (None, None)
        scratch, y = make_scratch(), make_y()
        middle(x, inner, scratch, scratch)
        if second is None:
            first(rounded(scratch, dtype), down[0], y)
        elif pivoted:
            first(rounded(scratch, dtype), down[0], ours, scratch, y)
            second(rounded(scratch, dtype), down[1], others, y)
        else:
            first(rounded(scratch, dtype), down[0], scratch)
            second(rounded(scratch, dtype), down[1], y)
        return rounded(y, dtype)

    return run


swiglu = Plans(_prepare_swiglu)
"""act(gate) · up [..., m] of x [..., n], A_gate [r, n], B_gate [m, r], A_up [q, n], B_up [m, q] and an activation."""

mlp = Plans(_prepare_mlp)
"""[..., k] of x [..., n], layers (gate, up, down) or (both, down), and an activation."""
