"""Count the bytes that a kernel's programs load and store, in Triton's interpreter.

These bytes are not memory traffic, because tiles that several programs read come from the cache. They are the requests
to the cache: exact, and the same on every machine, so that a change that reads more is always visible.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from triton.runtime import interpreter

from sieve_kernels.aot.launch import unplanned
from sieve_kernels.common import tiles
from sieve_kernels.core import dispatch
from sieve_kernels.core.cases import CASES, Case
from sieve_kernels.core.plans import Plans
from sieve_kernels.core.problems import COUNTED, Problem

DTYPES = (torch.bfloat16, torch.float32)


def rows(names: list[str]) -> list[dict]:
    """Bytes moved and the minimum, for the named cases in every counted shape and dtype."""
    found = []
    for case in CASES:
        for dtype in DTYPES:
            if case.name in names and dtype in case.dtypes and case.is_counted:
                for shape, problem in case.problems(COUNTED, dtype).items():
                    where = {"case": case.name, "shape": shape, "dtype": str(dtype).removeprefix("torch.")}
                    found.append(where | {"moved": moved(case, problem), "minimum": case.minimum(problem)})
    return found


def moved(case: Case, problem: Problem) -> int:
    """Bytes that the programs of `case` load and store for `problem`: masked elements do not count."""

    def make(*sizes: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.ones(sizes, dtype=dtype or problem.dtype)

    # In the interpreter kernels store float32, because of its rounding; bytes are counted as on a GPU.
    with (
        patch.object(tiles, "compute_dtype", lambda dtype: dtype),
        patch.object(Plans, "__call__", unplanned),
        _counting() as bytes_moved,
    ):
        case.launch(make, problem)
    return sum(bytes_moved)


@contextmanager
def _counting() -> Iterator[list[int]]:
    """Within, collect the bytes of every load, store and (twice: it does both) atomic operation."""
    assert dispatch.INTERPRETED, "set TRITON_INTERPRET=1 before Triton is imported"
    found: list[int] = []
    builder = interpreter.interpreter_builder
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    # Each operation of the interpreter is replaced by one that adds its bytes first.
    def note(pointers, mask, times: int = 1) -> None:
        found.append(int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8 * times)

    def counted_load(pointers, mask, *rest, **named):
        note(pointers, mask)
        return load(pointers, mask, *rest, **named)

    def counted_store(pointers, value, mask, *rest, **named):
        note(pointers, mask)
        return store(pointers, value, mask, *rest, **named)

    def counted_atomic(operation, pointers, value, mask, *rest, **named):
        note(pointers, mask, times=2)
        return atomic(operation, pointers, value, mask, *rest, **named)

    with (
        patch.object(builder, "create_masked_load", counted_load),
        patch.object(builder, "create_masked_store", counted_store),
        patch.object(builder, "create_atomic_rmw", counted_atomic),
    ):
        yield found


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1:])))
