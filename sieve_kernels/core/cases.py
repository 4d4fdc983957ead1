"""CASES: the kernels that are compiled ahead of time and whose traffic is counted; one entry serves both.

A case names a launcher and builds its arguments. The launcher itself chooses tiles, warps and stages, for the compiler
on tensors without memory (device "meta") and for the interpreter on small CPU tensors, so nothing is repeated here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import Tensor

from sieve_kernels.aot.targets import TARGETS
from sieve_kernels.core.plans import Plans
from sieve_kernels.core.problems import DTYPES, PROBLEMS, Problem

Make = Callable[..., Tensor]
"""make(*sizes, dtype=None): a tensor in the problem's dtype or the one given."""


@dataclass(frozen=True)
class Case:
    """A launcher ("module:function" inside the package), its arguments for a problem, and the minimum bytes it moves.

    `minimum` is the cost model of the family's README: inputs and intermediates read once, results written once.
    """

    name: str
    launcher: str
    arguments: Callable[[Make, Problem], tuple]
    minimum: Callable[[Problem], int]
    shapes: tuple[str, ...] = tuple(PROBLEMS)
    dtypes: tuple[torch.dtype, ...] = tuple(DTYPES)
    rank: int | None = None  # instead of the problem's
    targets: tuple[str, ...] = tuple(TARGETS)

    @property
    def is_counted(self) -> bool:
        """Whether its traffic is counted: the interpreter takes the path of GPUs without TMA."""
        return self.targets == tuple(TARGETS)

    def problems(self, problems: dict[str, Problem], dtype: torch.dtype) -> dict[str, Problem]:
        """The problems that the case serves, by shape class."""
        shapes = {shape: replace(p, dtype=dtype) for shape, p in problems.items() if shape in self.shapes}
        return {shape: replace(p, r=self.rank or p.r) for shape, p in shapes.items()}

    def launch(self, make: Make, problem: Problem) -> None:
        module, name = self.launcher.split(":")
        function, arguments = getattr(import_module(f"sieve_kernels.{module}"), name), self.arguments(make, problem)
        # Plans prepared for another device must not be reused.
        function = function.prepare(*arguments) if isinstance(function, Plans) else function
        function(*arguments)


GRAM = ("aligned", "ragged", "small")
BACKWARD = ("aligned", "ragged")
FEW = ("few", "one")
NARROW = (torch.bfloat16, torch.float16)
COPYING = ("sm_90", "sm_100")
"""Targets with TMA, for kernels that need it."""
COMMON = (torch.bfloat16, torch.float32)
"""Dtypes of cases whose kernels are covered in all dtypes by other cases."""


def _products(*sizes: tuple[int, int, int]) -> int:
    """Number of elements that products [M, K] · [K, N] read and write."""
    return sum(M * K + K * N + M * N for M, K, N in sizes)


def _shared(p: Problem, count: int) -> int:
    """Number of elements moved for `count` intermediates z = x Aᵀ of one x."""
    return count * _products((p.T, p.n, p.r)) - (count - 1) * p.T * p.n


def _backward(p: Problem, ms: tuple[int, ...]) -> int:
    """Elements moved for dz = g B, dA = dzᵀ x, dB = gᵀ z of every output, all z at once, and one dx = Σ dz A."""
    each = sum(_products((p.T, m, p.r), (p.r, p.T, p.n), (m, p.T, p.r), (p.T, p.r, p.n)) for m in ms)
    return each - (len(ms) - 1) * p.T * p.n + _shared(p, len(ms))


def _qkv(p: Problem) -> tuple[int, int, int]:
    """Outputs of query, key and value, with four query heads per key head."""
    return p.m, p.m // 4, p.m // 4


def _head(p: Problem) -> int:
    """Elements per head, with 32 heads."""
    return p.n // 64 * 2


def _packed(t: Make, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A factor of 4 bits and its scales."""
    return t(rows, -(-columns // 2), dtype=torch.uint8), t(rows, -(-columns // 64), dtype=torch.float32)


def _factors(t: Make, p: Problem, *sizes: int) -> list[Tensor]:
    return [t(*sizes) for _ in _qkv(p)]


CASES = (
    Case(
        "gram_",
        "gram.triton_backend:gram_",
        lambda t, p: (t(p.n, p.n, dtype=p.acc_dtype), t(p.T, p.n), None),
        lambda p: p.size * p.T * p.n + p.acc_dtype.itemsize * (p.n * (p.n + 1) // 2 + p.n**2),
        GRAM,
    ),
    Case(
        "gram_ masked",
        "gram.triton_backend:gram_",
        lambda t, p: (t(p.n, p.n, dtype=p.acc_dtype), t(p.T, p.n), t(p.T, dtype=torch.bool)),
        lambda p: p.size * p.T * p.n + p.T + p.acc_dtype.itemsize * (p.n * (p.n + 1) // 2 + p.n**2),
        GRAM,
        dtypes=COMMON,
    ),
    Case(
        "gram_ weighted",
        "gram.triton_backend:gram_",
        lambda t, p: (t(p.n, p.n, dtype=p.acc_dtype), t(p.T, p.n), t(p.T, dtype=p.acc_dtype)),
        lambda p: p.size * p.T * p.n + p.acc_dtype.itemsize * (p.T + p.n * (p.n + 1) // 2 + p.n**2),
        GRAM,
        dtypes=COMMON,
    ),
    Case(
        "cross_gram_",
        "gram.triton_backend:cross_gram_",
        lambda t, p: (t(p.n, p.m, dtype=p.acc_dtype), t(p.T, p.n), t(p.T, p.m), None),
        lambda p: p.size * p.T * (p.n + p.m) + p.acc_dtype.itemsize * 2 * p.n * p.m,
        GRAM,
        dtypes=COMMON,
    ),
    Case(
        "lowrank_linear",
        "lowrank.triton.linear:linear",
        lambda t, p: (t(p.T, p.n), t(p.r, p.n), t(p.m, p.r), t(p.m)),
        lambda p: p.size * (_products((p.T, p.n, p.r), (p.T, p.r, p.m)) + p.m),
    ),
    Case(
        "lowrank_linear fused",
        "lowrank.triton.linear:linear_fused",
        lambda t, p: (t(p.T, p.n), t(p.r, p.n), t(p.m, p.r), t(p.m)),
        lambda p: p.size * (_products((p.T, p.n, p.r), (p.T, p.r, p.m)) - 2 * p.T * p.r + p.m),
        dtypes=(torch.bfloat16, torch.float16, torch.float32),
        rank=64,
    ),
    Case(
        "lowrank_linear backward",
        "lowrank.triton.linear:linear_backward",
        lambda t, p: (t(p.T, p.m), t(p.T, p.n), t(p.r, p.n), t(p.m, p.r), [True] * 3),
        lambda p: p.size * _backward(p, (p.m,)),
        BACKWARD,
        dtypes=COMMON,
    ),
    Case(
        "lowrank_linear_group",
        "lowrank.triton.group:group",
        lambda t, p: (t(p.T, p.n), _factors(t, p, p.r, p.n), [t(m, p.r) for m in _qkv(p)], [t(m) for m in _qkv(p)]),
        lambda p: p.size * (_shared(p, 3) + sum(_products((p.T, p.r, m)) + m for m in _qkv(p))),
        dtypes=COMMON,
    ),
    Case(
        "lowrank_linear half a tile",
        "lowrank.triton.grouped:pair",
        lambda t, p: (t(64, p.n), t(p.r, p.n), t(p.n, p.r), None),
        lambda p: p.size * _products((64, p.n, p.r), (64, p.r, p.n)),
        ("aligned",),
        dtypes=NARROW,
        targets=COPYING,
    ),
    Case(
        "lowrank_linear_group some rows",
        "lowrank.triton.grouped:group",
        lambda t, p: (t(256, p.n), _factors(t, p, p.r, p.n), [t(m, p.r) for m in _qkv(p)], None),
        lambda p: p.size * (_shared(replace(p, T=256), 3) + sum(_products((256, p.r, m)) for m in _qkv(p))),
        ("aligned",),
        dtypes=NARROW,
        targets=COPYING,
    ),
    Case(
        "lowrank_linear_group backward",
        "lowrank.triton.group:group_backward",
        lambda t, p: (
            [t(p.T, m) for m in _qkv(p)],
            t(p.T, p.n),
            _factors(t, p, p.r, p.n),
            [t(m, p.r) for m in _qkv(p)],
            [True] * 7,
        ),
        lambda p: p.size * _backward(p, _qkv(p)),
        BACKWARD,
    ),
    Case(
        "linear",
        "lowrank.triton.dense:linear",
        lambda t, p: (t(p.T, p.n), t(p.m, p.n), t(p.m)),
        lambda p: p.size * (_products((p.T, p.n, p.m)) + p.m),
        ("aligned", "few", "one"),
        dtypes=COMMON,
    ),
    Case(
        "lowrank_swiglu",
        "mlp.triton_backend:swiglu",
        lambda t, p: (t(p.T, p.n), t(p.r, p.n), t(p.m, p.r), t(p.r, p.n), t(p.m, p.r), "silu"),
        lambda p: p.size * (_shared(p, 2) + 2 * (p.T * p.r + p.r * p.m) + p.T * p.m),
    ),
    Case(
        "lowrank_swiglu backward",
        "mlp.triton_backend:swiglu_backward",
        lambda t, p: (t(p.T, p.m), t(p.T, p.n), *(t(p.r, p.n), t(p.m, p.r)) * 2, "silu", [True] * 5),
        lambda p: p.size * (_shared(p, 2) + 2 * (p.T * p.r + p.r * p.m) + 3 * p.T * p.m + _backward(p, (p.m, p.m))),
        BACKWARD,
        dtypes=COMMON,
    ),
    Case(
        "rms_norm",
        "pointwise.triton_backend:rms_norm",
        lambda t, p: (t(p.T, p.n), t(p.n), 1e-6),
        lambda p: p.size * (2 * p.T * p.n + p.n),
    ),
    Case(
        "rotary",
        "pointwise.triton_backend:rotary",
        lambda t, p: (
            *(t(1, p.T, heads, _head(p)).transpose(1, 2) for heads in (8, 2)),
            *(t(1, p.T, _head(p)) for _ in range(2)),
        ),
        lambda p: p.size * 2 * (8 + 2 + 1) * p.T * _head(p),
    ),
    Case(
        "act_mul",
        "pointwise.triton_columns:act_mul",
        lambda t, p: (t(p.T, p.m), t(p.T, p.m), "silu"),
        lambda p: p.size * 3 * p.T * p.m,
        dtypes=COMMON,
    ),
    Case(
        "act_mul gathered",
        "pointwise.triton_columns:act_mul",
        lambda t, p: (t(p.T, p.m), t(p.T, p.m), "silu", t(p.m, dtype=torch.int64), t(p.m, dtype=torch.int64)),
        lambda p: p.size * 3 * p.T * p.m + 16 * p.m,
        dtypes=COMMON,
    ),
    Case(
        "act_mul backward",
        "pointwise.triton_columns:act_mul_backward",
        lambda t, p: (t(p.T, p.m), t(p.T, p.m), t(p.T, p.m), "silu"),
        lambda p: p.size * 5 * p.T * p.m,
        BACKWARD,
        dtypes=COMMON,
    ),
    Case(
        "join_columns",
        "pointwise.triton_columns:join_columns",
        lambda t, p: (t(p.T, p.r), t(p.T, p.m - p.r), t(p.m, dtype=torch.int64), t(p.m)),
        lambda p: p.size * (2 * p.T * p.m + p.m) + 8 * p.m,
        BACKWARD,
        dtypes=COMMON,
    ),
    Case(
        "gather_columns",
        "pointwise.triton_columns:gather_columns",
        lambda t, p: (t(p.T, p.m), t(p.m, dtype=torch.int64), t(p.m)),
        lambda p: p.size * (2 * p.T * p.m + p.m) + 8 * p.m,
        dtypes=COMMON,
    ),
    Case(
        "expand",
        "lowrank.triton_expand:expand",
        lambda t, p: ([t(p.m - p.r, p.r)] * 2, [t(p.m, dtype=torch.int32) + p.r] * 2),
        lambda p: 2 * p.size * (2 * p.m - p.r) * p.r + 2 * 4 * p.m,
        BACKWARD,
        dtypes=COMMON,
    ),
    Case(
        "lowrank_linear_pivoted",
        "lowrank.triton.pivoted:pivoted",
        lambda t, p: (t(p.T, p.n), t(p.r, p.n), t(p.m - p.r, p.r), t(p.m, dtype=torch.int64), t(p.m)),
        lambda p: p.size * (_products((p.T, p.n, p.r), (p.T, p.r, p.m - p.r)) + p.T * p.r + p.m) + 8 * p.m,
    ),
    Case(
        "lowrank_linear_population",
        "lowrank.triton.population:population",
        lambda t, p: (t(8, -(-p.T // 8), p.n), t(p.r, p.n), t(p.m, p.r), t(8, dtype=torch.int32) * p.r),
        lambda p: p.size * _products((-(-p.T // 8) * 8, p.n, p.r), (-(-p.T // 8) * 8, p.r, p.m)) + 4 * 8,
        ("aligned", "ragged", "small", "few"),
    ),
    Case(
        "lowrank_linear_quantized",
        "lowrank.triton.quantized:quantized",
        lambda t, p: (
            t(p.T, p.n),
            *(t(p.r, p.n, dtype=torch.int8), t(p.r, dtype=torch.float32)),
            *(t(p.m, p.r, dtype=torch.int8), t(p.m, dtype=torch.float32)),
            None,
        ),
        lambda p: p.size * p.T * (p.n + 2 * p.r + p.m) + p.r * (p.n + p.m) + 4 * (p.r + p.m),
        dtypes=(torch.bfloat16, torch.float16, torch.float32),
    ),
    Case(
        "lowrank_linear_quantized 4 bits",
        "lowrank.triton.quantized:quantized",
        lambda t, p: (t(p.T, p.n), *_packed(t, p.r, p.n), *_packed(t, p.m, p.r), None),
        lambda p: (
            p.size * p.T * (p.n + 2 * p.r + p.m)
            + sum(rows * (-(-columns // 2) + 4 * -(-columns // 64)) for rows, columns in ((p.r, p.n), (p.m, p.r)))
        ),
        dtypes=(torch.bfloat16, torch.float16, torch.float32),
    ),
    Case(
        "lowrank_linear few rows",
        "lowrank.triton.gemv:linear",
        lambda t, p: (t(p.T, p.n), t(p.r, p.n), t(p.m, p.r), t(p.m)),
        lambda p: p.size * (_products((p.T, p.n, p.r), (p.T, p.r, p.m)) + p.m),
        FEW,
        dtypes=NARROW,
    ),
    Case(
        "lowrank_linear_pivoted few rows",
        "lowrank.triton.gemv:pivoted",
        lambda t, p: (t(p.T, p.n), t(p.r, p.n), t(p.m - p.r, p.r), t(p.m, dtype=torch.int64), None),
        lambda p: p.size * (_products((p.T, p.n, p.r), (p.T, p.r, p.m - p.r)) + p.T * p.r) + 4 * p.m,
        FEW,
        dtypes=NARROW,
    ),
    Case(
        "lowrank_linear_group few rows",
        "lowrank.triton.gemv:group",
        lambda t, p: (t(p.T, p.n), _factors(t, p, p.r, p.n), [t(m, p.r) for m in _qkv(p)], [t(m) for m in _qkv(p)]),
        lambda p: p.size * (_shared(p, 3) + sum(_products((p.T, p.r, m)) + m for m in _qkv(p))),
        FEW,
        dtypes=NARROW,
    ),
    Case(
        "linear few rows",
        "lowrank.triton.gemv:dense",
        lambda t, p: (t(p.T, p.n), t(p.m, p.n), None),
        lambda p: p.size * _products((p.T, p.n, p.m)),
        FEW,
        dtypes=NARROW,
    ),
    Case(
        "lowrank_linear_quantized few rows",
        "lowrank.triton.gemv_quantized:quantized",
        lambda t, p: (
            t(p.T, p.n),
            *(t(p.r, p.n, dtype=torch.int8), t(p.r, dtype=torch.float32)),
            *(t(p.m, p.r, dtype=torch.int8), t(p.m, dtype=torch.float32)),
            None,
        ),
        lambda p: p.size * p.T * (p.n + 2 * p.r + p.m) + p.r * (p.n + p.m) + 4 * (p.r + p.m),
        FEW,
        dtypes=NARROW,
    ),
    Case(
        "lowrank_linear_quantized 4 bits, few rows",
        "lowrank.triton.gemv_quantized:quantized",
        lambda t, p: (t(p.T, p.n), *_packed(t, p.r, p.n), *_packed(t, p.m, p.r), None),
        lambda p: (
            p.size * p.T * (p.n + 2 * p.r + p.m)
            + sum(rows * (-(-columns // 2) + 4 * -(-columns // 64)) for rows, columns in ((p.r, p.n), (p.m, p.r)))
        ),
        FEW,
        dtypes=NARROW,
    ),
    Case(
        "lowrank_mlp few rows",
        "mlp.triton_gemv:mlp",
        lambda t, p: (
            t(p.T, p.n),
            (
                *((t(p.r, p.n), t(p.m - p.r, p.r), t(p.m, dtype=torch.int64)) for _ in range(2)),
                (t(p.r, p.m), t(p.n, p.r)),
            ),
            "silu",
        ),
        lambda p: (
            p.size
            * (
                _shared(p, 2)
                + 2 * (p.T * p.r + p.r * (p.m - p.r))
                + p.T * p.m
                + _products((p.T, p.m, p.r), (p.T, p.r, p.n))
            )
            + 4 * 2 * p.m
        ),
        FEW,
        dtypes=NARROW,
    ),
)
"""Other backward passes have no kernels of their own: they call `matmul`."""
