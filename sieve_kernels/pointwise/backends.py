"""Implementations of pointwise operators. Triton is imported at first use."""

from collections.abc import Callable
from types import ModuleType

from sieve_kernels.core import dispatch
from sieve_kernels.core.dispatch import Implementation


def triton() -> ModuleType:
    from sieve_kernels.pointwise import triton_backend

    return triton_backend


def triton_columns() -> ModuleType:
    from sieve_kernels.pointwise import triton_columns

    return triton_columns


def cpp(function: Callable[[], Callable]) -> Implementation:
    return Implementation("cpp", function, "compiled kernel: one pass", dispatch.is_vectorised)


def one_launch(function: Callable[[], Callable]) -> Implementation:
    return Implementation("triton", function, "one launch", dispatch.on_triton, dispatch.on_gpu)


def torch(function: Callable[[], Callable]) -> Implementation:
    return Implementation("torch", function, "torch's operators, which torch.compile fuses", dispatch.anywhere)
