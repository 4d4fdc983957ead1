"""OPERATORS: how each operator is called and what it computes, one table for the tests that all operators pass."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gradients import check_gradients
from torch import Tensor

import sieve_kernels as sk
from sieve_kernels.lowrank import reference
from sieve_kernels.lowrank.quantize import dequantize_rows
from sieve_kernels.mlp import reference as mlp_reference
from sieve_kernels.pointwise import reference as pointwise_reference
from sieve_kernels.pointwise.joints import join_columns

Tensors = Sequence[Tensor | None]
Function = Callable[..., Tensor | Sequence[Tensor]]
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
LAYER = ("torch", "torch_training", "cpp", "triton", "triton_gemv")
GROUPED = ("torch", "torch_gpu", *LAYER[1:])
SEVERAL = ("torch", "cpp", "triton")


@dataclass(frozen=True)
class Operator:
    """One operator as a function of a flat list of tensors.

    make: (rows, n, m, r, dtype, device) → its tensors, of which results are of order 1; x [*rows, n] first.
    ours, definition, torchs: functions of these: the operator, what it should compute, and what torch computes in the
        same dtype.
    implementations: what may serve it.
    biases: indices of the tensors that may be None. trained: those that may have gradients; None: all of floats.
    registered: tensors → the registered operators and their arguments, forwards and backwards.
    products: matrix products that the forward pass has; 0 where it is no layer.
    """

    make: Callable[..., list[Tensor]]
    ours: Function
    definition: Function
    torchs: Function
    implementations: tuple[str, ...]
    registered: Callable[[list[Tensor]], Iterator[tuple[str, tuple[Any, ...]]]]
    biases: tuple[int, ...] = ()
    trained: tuple[int, ...] | None = None
    products: int = 0

    def leaves(self, tensors: Tensors) -> list[int]:
        """Indices of the tensors that may have gradients."""
        if self.trained is not None:
            return [i for i in self.trained if tensors[i] is not None]
        return [i for i, t in enumerate(tensors) if t is not None and t.is_floating_point()]

    def without_bias(self, tensors: Tensors) -> list[Tensor | None]:
        return [None if i in self.biases else t for i, t in enumerate(tensors)]

    def wide(self, tensors: Tensors) -> list[Tensor | None]:
        """The tensors in float64, integers and scales as they are."""
        leaves = self.leaves(tensors)
        return [t.double() if i in leaves else t for i, t in enumerate(tensors)]

    def check(self, *tensors: Tensor | None) -> None:
        """Values and all gradients, by the accuracy rule."""
        check_gradients(self.ours, self.definition, tensors, self.torchs, self.leaves(tensors))


def outputs_of(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def scaled(*shapes: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
    """The first as it is drawn; matrices so that a product with them keeps the scale; vectors as they are drawn."""
    drawn = [torch.randn(shape, device=device) for shape in shapes]
    factors = [t * max(t.shape[-1], 1) ** -0.5 if t.dim() == 2 and i else t for i, t in enumerate(drawn)]
    return [t.to(dtype) for t in factors]


# Tensors of each operator


def dense_tensors(rows, n, m, r=1, dtype=torch.float32, device="cpu"):
    """x, W [m, n], bias [m]."""
    return scaled((*rows, n), (m, n), (m,), dtype=dtype, device=device)


def pair_tensors(rows, n, m, r, dtype=torch.float32, device="cpu"):
    """x, A [r, n], B [m, r], bias [m]."""
    return scaled((*rows, n), (r, n), (m, r), (m,), dtype=dtype, device=device)


def pivoted_tensors(rows, n, m, r, dtype=torch.float32, device="cpu"):
    """x, A [r, n], C [m - r, r], permutation [m], bias [m]."""
    x, A, C, bias = scaled((*rows, n), (r, n), (m - r, r), (m,), dtype=dtype, device=device)
    return [x, A, C, torch.randperm(m, device=device), bias]


def group_tensors(rows, n, m, r, dtype=torch.float32, device="cpu", sizes=None):
    """x, then As, Bs and biases of outputs of (m, rank) each."""
    sizes = sizes or ((m, r), (m // 2 or 1, r // 2 or 1), (1, 1))
    shapes = [*((r, n) for _, r in sizes), *((m, r) for m, r in sizes), *((m,) for m, _ in sizes)]
    return scaled((*rows, n), *shapes, dtype=dtype, device=device)


def gated_tensors(rows, n, m, r, dtype=torch.float32, device="cpu", up=None):
    """x, then A [rank, n] and B [m, rank] of gate and of up, which has a rank of its own."""
    shapes = [s for rank in (r, up or r // 2 + 1) for s in ((rank, n), (m, rank))]
    return scaled((*rows, n), *shapes, dtype=dtype, device=device)


def population_tensors(rows, n, m, r, dtype=torch.float32, device="cpu"):
    """x [candidates, rows, n], A [r, n], B [m, r], ranks [candidates]; of one size of rows each candidate has one."""
    first, *rest = rows
    count = torch.Size(rest[:-1]).numel() * first if len(rest) > 1 else first
    x, A, B = scaled((count, rest[-1] if rest else 1, n), (r, n), (m, r), dtype=dtype, device=device)
    return [x, A, B, torch.randint(1, r + 1, (count,), device=device)]


def quantized_tensors(rows, n, m, r, dtype=torch.float32, device="cpu", bits=(8, 8)):
    """x, integers and scales of A [r, n] and of B [m, r], bias [m]."""
    x, A, B, bias = scaled((*rows, n), (r, n), (m, r), (m,), dtype=torch.float32, device=device)
    return [x.to(dtype), *sk.quantize_rows(A, bits[0]), *sk.quantize_rows(B, bits[1]), bias.to(dtype)]


def mlp_tensors(rows, n, m, r, dtype=torch.float32, device="cpu"):
    """x, a pair as gate, a dense matrix as up and a pivoted pair as down, with as many outputs as inputs."""
    shapes = ((*rows, n), (r, n), (m, r), (m, n), (r, m), (m - r, r))
    return [*scaled(*shapes, dtype=dtype, device=device), torch.randperm(m, device=device)]


def norm_tensors(rows, n, m=1, r=1, dtype=torch.float32, device="cpu"):
    """x and weight [n]."""
    return [torch.randn(*rows, n, device=device).to(dtype), torch.rand(n, device=device).to(dtype)]


def halves(rows, n, m=1, r=1, dtype=torch.float32, device="cpu"):
    """gate and up [*rows, n], of one tensor."""
    return list(torch.randn(*rows, 2 * n, device=device).to(dtype).chunk(2, -1))


def rotary_tensors(rows, n, m=1, r=1, dtype=torch.float32, device="cpu"):
    """q and k, whose heads are behind the tokens in memory, cos and sin."""
    tokens, width = torch.Size(rows).numel(), n + n % 2
    q, k = (torch.randn(2, tokens, heads, width, device=device).to(dtype).transpose(1, 2) for heads in (4, 2))
    angles = torch.randn(2, 1, tokens, width, device=device)
    return [q, k, angles[0].cos().to(dtype), angles[1].sin().to(dtype)]


def columns(rows, n, m, r=1, dtype=torch.float32, device="cpu"):
    """z [*rows, n], c [*rows, m], permutation [n + m], bias [n + m]."""
    z, c, bias = (torch.randn(s, device=device).to(dtype) for s in ((*rows, n), (*rows, m), (n + m,)))
    return [z, c, torch.randperm(n + m, device=device), bias]


# What torch computes in the same dtype


def two_products(x, A, B, bias=None):
    return F.linear(F.linear(x, A), B, bias)


def pivoted_products(x, A, C, permutation, bias=None):
    z = F.linear(x, A)
    y = torch.cat([z, F.linear(z, C)], -1)[..., torch.argsort(permutation)]
    return y if bias is None else y + bias


def separate_pairs(x, As, Bs, biases):
    biases = biases or [None] * len(As)
    return [two_products(x, A, B, bias) for A, B, bias in zip(As, Bs, biases, strict=True)]


def separate_gate_and_up(x, A_gate, B_gate, A_up, B_up, activation="silu"):
    return mlp_reference.ACTIVATIONS[activation](two_products(x, A_gate, B_gate)) * two_products(x, A_up, B_up)


def one_by_one(x, A, B, ranks):
    """One candidate after the other."""
    ys = [reference.linear(rows, A[:r], B[:, :r]) for rows, r in zip(x, ranks.tolist(), strict=True)]
    return torch.stack(ys) if ys else x.new_empty((0, x.shape[1], len(B))) + 0 * (x.sum() + A.sum() + B.sum())


def dequantized(x, A_q, A_scale, B_q, B_scale, bias=None):
    """From factors in x's dtype."""
    A, B = dequantize_rows(A_q, A_scale, x.shape[-1], x.dtype), dequantize_rows(B_q, B_scale, len(A_q), x.dtype)
    return two_products(x, A, B, bias)


def joined(z, c, permutation, bias):
    y = torch.cat([z, c], -1)[..., torch.argsort(permutation)]
    return y if bias is None else y + bias


def split(function: Function) -> Function:
    """`function` of x, As, Bs, biases as one of x, *As, *Bs, *biases; None for every bias means no biases."""

    def flat(x, *rest):
        count = len(rest) // 3
        biases = rest[2 * count :]
        return function(x, rest[:count], rest[count : 2 * count], None if biases[0] is None else list(biases))

    return flat


def _mlp(function: Function) -> Function:
    return lambda x, A, B, W, A_down, C_down, permutation: function(x, [(A, B), (W,), (A_down, C_down, permutation)])


# Registered operators, forwards and backwards


def _layer(name: str, count: int = 3, integers: int = 0) -> Callable[[list[Tensor]], Iterator]:
    """Of a layer: of x and `count` - 1 factors, `integers`, a bias; backwards for all gradients, and for some."""

    def calls(tensors):
        x, factors, whole = tensors[0], tensors[1:count], tensors[count : count + integers]
        rest = tensors[count + integers :]
        if rest:
            yield name, (x, *factors, *whole, None)
        yield name, (x, *factors, *whole, *rest)
        y = OPERATORS[name].definition(*tensors)
        plain = [torch.randn_like(y), *(t.detach() for t in (x, *factors)), *whole]
        for needed in ([True] * count, [False, True, False][:count]):
            yield f"{name}_backward", (*plain, needed)

    return calls


def _pair(tensors):
    """Of factors, and of slices of them."""
    yield from _layer("lowrank_linear")(tensors)
    x, A, B, _ = tensors
    yield "lowrank_linear", (x, A[:2], B[:, :2], None)


def _mlp_layers(tensors):
    x, *factors = (t.detach() for t in tensors)
    yield "lowrank_mlp", (x, factors, [2, 1, 3], "silu")


def _group(tensors):
    count = len(tensors) // 3
    x, As, Bs, biases = tensors[0], *(tensors[1 + i * count : 1 + (i + 1) * count] for i in range(3))
    yield "lowrank_linear_group", (x, As, Bs, biases)
    yield "lowrank_linear_group", (x, As, Bs, [])
    grads = [torch.randn_like(y) for y in separate_pairs(x, As, Bs, None)]
    plain = [x.detach(), *([t.detach() for t in factors] for factors in (As, Bs))]
    for needed in ([True] * (1 + 2 * count), [False, False, *[True] * count, *[False] * (count - 1)]):
        yield "lowrank_linear_group_backward", (grads, *plain, needed)


def _gated(tensors):
    yield "lowrank_swiglu", (*tensors, "gelu")
    grad, *plain = (t.detach() for t in (torch.randn_like(separate_gate_and_up(*tensors)), *tensors))
    for needed in ([True] * 5, [False, False, True, True, False]):
        yield "lowrank_swiglu_backward", (grad, *plain, "silu", needed)


def _quantized(tensors):
    yield "lowrank_linear_quantized", tuple(tensors)
    yield "lowrank_linear_quantized", (*tensors[:-1], None)


def _act_mul(tensors):
    yield "act_mul", (*tensors, "gelu")
    gate, up = (t.detach() for t in tensors)
    yield "act_mul_backward", (torch.randn_like(gate), gate, up, "gelu")


def _columns(tensors):
    z, c, permutation, bias = tensors
    yield "join_columns", (z, c, permutation, bias)
    yield "join_columns", (z, c, permutation, None)
    yield "gather_columns", (joined(z, c, permutation, None).detach(), permutation)


OPERATORS = {
    "linear": Operator(
        dense_tensors, sk.linear, reference.dense, F.linear, LAYER, _layer("linear", 2), biases=(2,), products=1
    ),
    "lowrank_linear": Operator(
        pair_tensors, sk.lowrank_linear, reference.linear, two_products,
        ("torch", "torch_training", "cpp", "triton", "triton_fused", "triton_gemv"), _pair,
        biases=(3,), products=2,
    ),
    "lowrank_linear_pivoted": Operator(
        pivoted_tensors, sk.lowrank_linear_pivoted, reference.pivoted, pivoted_products, GROUPED,
        _layer("lowrank_linear_pivoted", integers=1), biases=(4,), products=2,
    ),
    "lowrank_linear_group": Operator(
        group_tensors, split(sk.lowrank_linear_group), split(reference.group), split(separate_pairs), GROUPED, _group,
        biases=(7, 8, 9), products=6,
    ),
    "lowrank_linear_population": Operator(
        population_tensors, sk.lowrank_linear_population, one_by_one, one_by_one, SEVERAL,
        _layer("lowrank_linear_population", integers=1),
    ),
    **{
        f"lowrank_linear_quantized {bits[0]} {bits[1]}": Operator(
            lambda *sizes, bits=bits, **more: quantized_tensors(*sizes, bits=bits, **more),
            sk.lowrank_linear_quantized, reference.quantized, dequantized,
            ("torch", "cpp", "triton", "triton_gemv"), _quantized, biases=(5,), trained=(0, 5),
        )
        for bits in ((8, 8), (4, 4), (8, 4))
    },
    "lowrank_swiglu": Operator(
        gated_tensors, sk.lowrank_swiglu, mlp_reference.swiglu, separate_gate_and_up, GROUPED, _gated, products=4
    ),
    "lowrank_mlp": Operator(
        mlp_tensors, _mlp(lambda x, layers: sk.lowrank_mlp(x, *layers)), _mlp(mlp_reference.mlp),
        _mlp(mlp_reference.mlp), ("torch", "torch_gpu", "torch_training", "cpp", "triton_gemv"),
        _mlp_layers, products=5,
    ),
    "rms_norm": Operator(
        norm_tensors, sk.rms_norm, lambda x, weight: pointwise_reference.rms_norm(x, weight, 1e-6),
        lambda x, weight: pointwise_reference.rms_norm(x, weight, 1e-6), SEVERAL,
        lambda tensors: iter([("rms_norm", (*tensors, 1e-5))]),
    ),
    "rotary": Operator(
        rotary_tensors, sk.rotary, pointwise_reference.rotary, pointwise_reference.rotary, SEVERAL,
        lambda tensors: iter([("rotary", tuple(tensors))]),
    ),
    "act_mul": Operator(
        halves, sk.act_mul, *[lambda gate, up: pointwise_reference.act_mul(gate, up, "silu")] * 2, SEVERAL, _act_mul
    ),
    "join_columns": Operator(
        columns, join_columns, joined, joined, ("torch", "triton"), _columns, biases=(3,)
    ),
}  # fmt: skip
"""By name."""

LAYERS = {name: operator for name, operator in OPERATORS.items() if operator.products}
