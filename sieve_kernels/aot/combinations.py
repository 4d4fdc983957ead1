"""Combinations of dtypes that `core.cases` lacks: whether each compiles and multiplies every element exactly once.

python -m sieve_kernels.aot.combinations prints, as JSON, the number of compiled programs and their faults. Versions of
Triton differ most in this respect: run it with each supported version.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from itertools import product

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource

from sieve_kernels.aot.launch import LaunchRecord, gpu_target, launches, pretended
from sieve_kernels.aot.targets import TARGETS, Target
from sieve_kernels.core.cases import Case, Make
from sieve_kernels.core.problems import Problem

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def combinations() -> Iterator[tuple[Case, Problem]]:
    """Launchers with arguments of every combination of dtypes that they take; small sizes, aligned and not."""
    for tokens, acc_dtype in product(FLOATS, (torch.float32, torch.float64)):
        if tokens == torch.float64 and acc_dtype == torch.float32:
            continue
        for weight in (None, torch.bool, acc_dtype):
            name = f"gram_ {tokens} in {acc_dtype}, weight {weight}"
            yield _case(name, "gram.triton_backend:gram_", _gram(acc_dtype, weight)), Problem(50, 20, 0, 0, tokens)
            if weight is None:
                yield _case(name, "gram.triton_backend:gram_", _gram(acc_dtype, weight)), Problem(64, 128, 0, 0, tokens)
    for dtype, bits, rows in product(FLOATS[:3], ((8, 8), (4, 4), (8, 4), (4, 8)), (2, 34)):
        case = _case(f"{bits} bits {rows} rows {dtype}", "lowrank.triton.quantized:quantized", _quantized(bits))
        yield case, Problem(rows, 600, 40, 20, dtype)
        if dtype != torch.float16:
            yield case, Problem(rows, 4096, 4096, 1024, dtype)
    for dtype, bits, rows in product(FLOATS[:2], ((8, 8), (4, 4)), (1, 2, 16, 64)):
        name = f"few rows, {bits} bits {rows} rows {dtype}"
        case = _case(name, "lowrank.triton.gemv_quantized:quantized", _quantized(bits))
        yield case, Problem(rows, 1024, 512, 256, dtype)
    for dtype, rows in product(FLOATS, (1, 40)):
        turn = _case(f"rotary {dtype}", "pointwise.triton_backend:rotary", _rotary)
        yield turn, Problem(rows, 16, 0, 0, dtype)


def _case(name: str, launcher: str, arguments: Callable[[Make, Problem], tuple]) -> Case:
    return Case(name, launcher, arguments, lambda _: 0)


def _gram(acc_dtype: torch.dtype, weight: torch.dtype | None) -> Callable[[Make, Problem], tuple]:
    return lambda t, p: (t(p.n, p.n, dtype=acc_dtype), t(p.T, p.n), None if weight is None else t(p.T, dtype=weight))


def _quantized(bits: tuple[int, int]) -> Callable[[Make, Problem], tuple]:
    def arguments(t: Make, p: Problem) -> tuple:
        return t(p.T, p.n), *_factor(t, p.r, p.n, bits[0]), *_factor(t, p.m, p.r, bits[1]), t(p.m)

    return arguments


def _factor(t: Make, rows: int, columns: int, bits: int) -> tuple[Tensor, Tensor]:
    if bits == 8:
        return t(rows, columns, dtype=torch.int8), t(rows, dtype=torch.float32)
    return t(rows, -(-columns // 2), dtype=torch.uint8), t(rows, -(-columns // 64), dtype=torch.float32)


def _rotary(t: Make, p: Problem) -> tuple:
    """Queries, keys and angles as in attention, with p.n elements per head."""
    return *(t(1, p.T, heads, p.n).transpose(1, 2) for heads in (4, 2)), *(t(1, p.T, p.n) for _ in range(2))


def fault(launch: LaunchRecord, target: Target) -> str | None:
    """The fault of a launch's program; None if there is none."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    with pretended(target):
        kernel = triton.compile(source, target=gpu_target(target), options=launch.options)
    if launch.kernel.__name__ == "rotary_kernel" and re.search(r"\bfma\.", kernel.asm["ptx"]):
        return "sums a product before it is rounded"
    return counted_twice(kernel.asm["ttgir"])


def counted_twice(ttgir: str) -> str | None:
    """The first tensor-core product of a warp whose K is shorter than the elements of four adjacent threads.

    Triton 3.6 then gives several threads the same elements and adds their products once per thread.
    """
    warps = set(re.findall(r"^(#mma\d*) = #ttg\.nvidia_mma<\{versionMajor = 2\b", ttgir, re.M))
    operand = r"tensor<\d+x(\d+)x\w+, #ttg\.dot_op<\{opIdx = 0, parent = (#mma\d*), kWidth = (\d+)\}>>"
    for length, layout, width in re.findall(operand, ttgir):
        if layout in warps and int(length) < 4 * int(width):
            return f"a product of {length} elements, of which each of four threads holds {width}"
    return None


def answer(target: Target, case: Case, problem: Problem) -> list[str]:
    """The faults of a case's programs, in words."""
    found = []
    for launch in launches(case, problem, target):
        try:
            wrong = fault(launch, target)
        except Exception as error:
            wrong = f"does not compile: {error}"
        if wrong:
            found.append(f"{case.name}, {problem}, {launch.kernel.__name__} on {target.name}: {wrong}")
    return found


def main(names: list[str]) -> int:
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    cases = [(case, problem) for case, problem in combinations() if not names or any(n in case.name for n in names)]
    found = [wrong for case, problem in cases for wrong in answer(TARGETS["sm_90"], case, problem)]
    json.dump({"combinations": len(cases), "faults": found}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
