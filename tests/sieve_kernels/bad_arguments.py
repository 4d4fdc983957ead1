"""BAD: arguments that each operator refuses, with the error and a part of its message."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from operators import GROUPED, LAYER, OPERATORS, SEVERAL
from torch import zeros

import sieve_kernels as sk

Case = tuple[type[Exception], dict[str, Any], str]
META = {"device": "meta"}
HALF, INTEGERS, WIDE = torch.bfloat16, torch.int32, torch.float64


@dataclass(frozen=True)
class Refused:
    """What one function refuses, whichever implementation would serve it.

    arguments: by name, that it takes. cases: (error, what is changed in them, a pattern of the message).
    """

    function: Callable
    arguments: Callable[[], dict[str, Any]]
    implementations: tuple[str, ...]
    cases: tuple[Case, ...]


def _named(operator: str, *names: str) -> Callable[[], dict[str, Any]]:
    return lambda: dict(zip(names, OPERATORS[operator].make((4,), 8, 6, 3), strict=True))


def _group() -> dict[str, Any]:
    x, *rest = OPERATORS["lowrank_linear_group"].make((4,), 8, 6, 3, sizes=((6, 3), (5, 2)))
    return {"x": x, "As": rest[:2], "Bs": rest[2:4], "biases": rest[4:]}


def _population() -> dict[str, Any]:
    tensors = OPERATORS["lowrank_linear_population"].make((4, 3), 8, 6, 5)
    return dict(zip(("x", "A", "B", "ranks"), tensors, strict=True))


def _mlp() -> dict[str, Any]:
    x, A, B = torch.randn(4, 8), torch.randn(5, 8), torch.randn(12, 5)
    return {"x": x, "gate": (A, B), "up": (A, B), "down": (torch.randn(4, 12), torch.randn(6, 4))}


def _rotary(b=1, d=4, angles=1) -> dict[str, Any]:
    q, k, cos, sin = (zeros(s) for s in ((b, 2, 3, d), (b, 1, 3, d), (angles, 3, d), (angles, 3, d)))
    return {"q": q, "k": k, "cos": cos, "sin": sin}


BAD = {
    "linear": Refused(
        sk.linear,
        _named("linear", "x", "W", "bias"),
        LAYER,
        (
            (ValueError, {"x": zeros(4, 9)}, r"\[4, 9\].*W \[6, 8\]"),
            (ValueError, {"W": zeros(8)}, r"W \[8\]"),
            (ValueError, {"bias": zeros(5)}, r"bias \[5\]"),
            (ValueError, {"W": zeros(6, 8, **META)}, "meta"),
            (TypeError, {"W": zeros(6, 8, dtype=HALF)}, r"float32.*bfloat16"),
            (TypeError, {"bias": zeros(6, dtype=WIDE)}, r"float32.*float64"),
            (TypeError, {"x": zeros(4, 8, dtype=INTEGERS)}, "int32"),
        ),
    ),
    "lowrank_linear": Refused(
        sk.lowrank_linear,
        _named("lowrank_linear", "x", "A", "B", "bias"),
        OPERATORS["lowrank_linear"].implementations,
        (
            (ValueError, {"x": zeros(4, 9)}, r"\[4, 9\].*\[3, 8\].*\[6, 3\]"),
            (ValueError, {"B": zeros(6, 4)}, r"\[3, 8\].*\[6, 4\]"),
            (ValueError, {"A": zeros(8)}, r"A \[8\]"),
            (ValueError, {"bias": zeros(5)}, r"bias \[5\]"),
            (ValueError, {"A": zeros(0, 8), "B": zeros(6, 0)}, "R ≥ 1"),
            (ValueError, {"rank": 0}, "between 1 and 3, got 0"),
            (ValueError, {"rank": 4}, "between 1 and 3, got 4"),
            (ValueError, {"A": zeros(3, 8, **META)}, "meta"),
            (TypeError, {"A": zeros(3, 8, dtype=HALF)}, r"float32.*bfloat16"),
            (TypeError, {"bias": zeros(6, dtype=WIDE)}, r"float32.*float64"),
            (TypeError, {"x": zeros(4, 8, dtype=INTEGERS)}, "int32"),
        ),
    ),
    "lowrank_linear_pivoted": Refused(
        sk.lowrank_linear_pivoted,
        _named("lowrank_linear_pivoted", "x", "A", "C", "permutation", "bias"),
        GROUPED,
        (
            (ValueError, {"x": zeros(4, 9)}, r"\[4, 9\].*\[3, 8\].*\[3, 3\]"),
            (ValueError, {"C": zeros(3, 4)}, r"\[3, 8\].*\[3, 4\]"),
            (ValueError, {"A": zeros(8)}, r"A \[8\]"),
            (ValueError, {"bias": zeros(5)}, r"bias \[5\]"),
            (ValueError, {"permutation": torch.arange(5)}, r"permutation \[5\]"),
            (ValueError, {"A": zeros(0, 8), "C": zeros(6, 0)}, "r ≥ 1"),
            (ValueError, {"A": zeros(3, 8, **META)}, "meta"),
            (ValueError, {"permutation": zeros(6, dtype=torch.int64, **META)}, "meta"),
            (TypeError, {"permutation": torch.arange(6, dtype=INTEGERS)}, "int64.*int32"),
            (TypeError, {"A": zeros(3, 8, dtype=HALF)}, r"float32.*bfloat16"),
            (TypeError, {"bias": zeros(6, dtype=WIDE)}, r"float32.*float64"),
            (TypeError, {"x": zeros(4, 8, dtype=INTEGERS)}, "int32"),
        ),
    ),
    "lowrank_linear_group": Refused(
        sk.lowrank_linear_group,
        _group,
        GROUPED,
        (
            (ValueError, {"As": []}, "0 As, 2 Bs and 2 biases"),
            (ValueError, {"As": [], "Bs": [], "biases": None}, "0 As, 0 Bs and no biases"),
            (ValueError, {"biases": [None]}, "2 As, 2 Bs and 1 biases"),
            (ValueError, {"x": zeros(4, 9)}, r"\[4, 9\].*As\[0\] \[3, 8\].*\[6, 3\]"),
            (ValueError, {"Bs": [zeros(6, 3), zeros(5, 4)]}, r"As\[1\] \[2, 8\].*Bs\[1\] \[5, 4\]"),
            (ValueError, {"biases": [None, zeros(6)]}, r"biases\[1\] \[6\]"),
            (TypeError, {"x": zeros(4, 8, dtype=HALF)}, r"bfloat16.*As\[0\].*float32"),
            (TypeError, {"x": zeros(4, 8, dtype=INTEGERS)}, "int32"),
        ),
    ),
    "lowrank_linear_population": Refused(
        sk.lowrank_linear_population,
        _population,
        SEVERAL,
        (
            (ValueError, {"x": zeros(4, 8)}, r"x \[P, T, n\].*\[4, 8\]"),
            (ValueError, {"ranks": torch.ones(3, dtype=torch.int64)}, r"ranks \[3\]"),
            (ValueError, {"ranks": torch.tensor([1, 2, 3, 6])}, "between 1 and 5, got 1 to 6"),
            (ValueError, {"ranks": torch.tensor([0, 2, 3, 5])}, "between 1 and 5, got 0 to 5"),
            (ValueError, {"B": zeros(6, 4)}, r"\[5, 8\].*\[6, 4\]"),
            (ValueError, {"ranks": torch.ones(4, dtype=torch.int64, **META)}, "meta"),
            (TypeError, {"ranks": torch.ones(4)}, "int64 or int32.*float32"),
            (TypeError, {"A": zeros(5, 8, dtype=HALF)}, r"float32.*bfloat16"),
            (TypeError, {"x": zeros(4, 3, 8, dtype=INTEGERS)}, "int32"),
        ),
    ),
    "lowrank_linear_quantized": Refused(
        sk.lowrank_linear_quantized,
        _named("lowrank_linear_quantized 8 8", "x", "A_q", "A_scale", "B_q", "B_scale", "bias"),
        ("torch", "cpp", "triton", "triton_gemv"),
        (
            (ValueError, {"x": zeros(4, 9)}, r"\[4, 9\].*A_q \[3, 8\] int8"),
            (ValueError, {"A_q": zeros(3, 8, dtype=torch.uint8)}, r"A_q \[3, 8\] uint8"),
            (ValueError, {"A_scale": zeros(3, 1)}, r"A_scale \[3, 1\]"),
            (ValueError, {"B_q": zeros(6, 4, dtype=torch.int8)}, r"B_q \[6, 4\]"),
            (ValueError, {"bias": zeros(5)}, r"bias \[5\]"),
            (ValueError, {"A_scale": zeros(3, requires_grad=True)}, r"A_scale.*gradient.*\[3\].*inference only"),
            (ValueError, {"B_q": zeros(6, 3, dtype=torch.int8, **META)}, "meta"),
            (TypeError, {"A_q": zeros(3, 8)}, r"A_q \[3, 8\] float32"),
            (TypeError, {"B_scale": zeros(6, dtype=INTEGERS)}, r"B_scale.*int32"),
            (TypeError, {"bias": zeros(6, dtype=WIDE)}, r"float32.*float64"),
            (TypeError, {"x": zeros(4, 8, dtype=INTEGERS)}, "int32"),
        ),
    ),
    "lowrank_swiglu": Refused(
        sk.lowrank_swiglu,
        _named("lowrank_swiglu", "x", "A_gate", "B_gate", "A_up", "B_up"),
        GROUPED,
        (
            (ValueError, {"activation": "swish"}, "silu, gelu, gelu_tanh, relu, got 'swish'"),
            (ValueError, {"x": zeros(4, 9)}, r"\[4, 9\].*A_gate \[3, 8\].*\[6, 3\]"),
            (ValueError, {"B_up": zeros(6, 4)}, r"A_up \[2, 8\].*B_up \[6, 4\]"),
            (ValueError, {"B_up": zeros(5, 2)}, r"B_gate \[6, 3\].*B_up \[5, 2\]"),
            (TypeError, {"A_up": zeros(2, 8, dtype=HALF)}, r"float32.*A_up.*bfloat16"),
            (TypeError, {"x": zeros(4, 8, dtype=INTEGERS)}, "int32"),
        ),
    ),
    "lowrank_mlp": Refused(
        sk.lowrank_mlp,
        _mlp,
        OPERATORS["lowrank_mlp"].implementations,
        (
            (ValueError, {"gate": (zeros(12, 9),)}, r"gate of 8 inputs.*gate \(\[12, 9\]"),
            (ValueError, {"up": (zeros(11, 8),)}, "as many outputs, got 12 and 11"),
            (ValueError, {"down": (zeros(3, 12), zeros(6, 4))}, r"down of 12 inputs"),
            (ValueError, {"down": (zeros(3, 12), zeros(3, 3), torch.arange(5))}, r"down of 12 inputs"),
            (ValueError, {"gate": ()}, "gate of 8 inputs"),
            (ValueError, {"activation": "tanh"}, "silu"),
            (ValueError, {"gate": (zeros(25, 8),), "up": None}, "as many outputs, got 25 in all"),
            (ValueError, {"gate": (zeros(26, 8),), "up": None}, "down of 13 inputs"),
            (ValueError, {"gate": (zeros(12, 8, **META),)}, "meta"),
            (TypeError, {"gate": (zeros(12, 8, dtype=WIDE),)}, "float64"),
            (TypeError, {"down": (zeros(3, 12), zeros(3, 3), zeros(6))}, "int64"),
        ),
    ),
    "rms_norm": Refused(
        sk.rms_norm,
        lambda: {"x": zeros(8), "weight": torch.ones(8)},
        SEVERAL,
        (
            (ValueError, {"x": zeros(4, 9)}, r"\[4, 9\].*weight \[8\]"),
            (ValueError, {"x": zeros(()), "weight": torch.ones(1)}, r"x \[\]"),
            (ValueError, {"weight": zeros(8, **META)}, "meta"),
            (TypeError, {"weight": zeros(8, dtype=WIDE)}, r"float32.*float64"),
            (TypeError, {"x": zeros(8, dtype=INTEGERS), "weight": zeros(8, dtype=INTEGERS)}, "int32"),
        ),
    ),
    "act_mul": Refused(
        sk.act_mul,
        lambda: {"gate": zeros(4), "up": zeros(4)},
        SEVERAL,
        (
            (ValueError, {"gate": zeros(4, 3), "up": zeros(3)}, r"\[4, 3\].*up \[3\]"),
            (ValueError, {"activation": "tanh"}, "silu.*'tanh'"),
            (TypeError, {"up": zeros(4).half()}, "float16"),
        ),
    ),
    "channel_sums": Refused(
        sk.channel_sums,
        lambda: {"x": zeros(4, 3)},
        SEVERAL,
        (
            (ValueError, {"mask": zeros(3, dtype=torch.bool)}, r"mask \[3\]"),
            (TypeError, {"mask": torch.ones(4)}, "bool"),
        ),
    ),
    "rotary": Refused(
        sk.rotary,
        _rotary,
        SEVERAL,
        (
            (ValueError, _rotary(d=5), r"d even"),
            (ValueError, _rotary(b=3, angles=2), r"cos \[2, 3, 4\]"),
            (ValueError, {"sin": zeros(3, 4)}, r"sin \[3, 4\]"),
            (TypeError, {"sin": zeros(1, 3, 4).half()}, "float16"),
        ),
    ),
    "gram_": Refused(
        sk.gram_,
        lambda: {"out": zeros(3, 3), "x": zeros(5, 3)},
        SEVERAL,
        (
            (ValueError, {"out": zeros(3, 4)}, r"\[3, 4\].*\[5, 3\]"),
            (ValueError, {"x": zeros(5, 4)}, r"\[3, 3\].*\[5, 4\]"),
            (ValueError, {"weight": zeros(4)}, r"\[4\].*\[5, 3\]"),
            (ValueError, {"x": torch.tensor(1.0)}, "tokens"),
            (ValueError, {"out": zeros(3, 3, requires_grad=True)}, "gradient"),
            (ValueError, {"x": zeros(5, 3, **META)}, "device"),
            (ValueError, {"weight": zeros(5, **META)}, "device"),
            (TypeError, {"x": zeros(5, 3, dtype=torch.int64)}, "int64"),
            (TypeError, {"out": zeros(3, 3, dtype=HALF)}, "bfloat16"),
            (TypeError, {"x": zeros(5, 3, dtype=WIDE)}, "float64"),
            (TypeError, {"weight": zeros(5, dtype=torch.complex64)}, "complex64"),
        ),
    ),
    "cross_gram_": Refused(
        sk.cross_gram_,
        lambda: {"out": zeros(3, 3), "x": zeros(5, 3), "y": zeros(5, 3)},
        SEVERAL,
        (
            (ValueError, {"y": zeros(6, 3)}, r"\[5, 3\].*\[6, 3\]"),
            (TypeError, {"y": zeros(5, 3, dtype=HALF)}, r"float32.*bfloat16"),
        ),
    ),
}
"""By function."""
