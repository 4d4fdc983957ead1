"""Modules of this package that need Triton, imported at first use."""

from types import ModuleType


def triton() -> ModuleType:
    from sieve_kernels.mlp import triton_backend

    return triton_backend


def triton_gemv() -> ModuleType:
    from sieve_kernels.mlp import triton_gemv

    return triton_gemv


def triton_grouped() -> ModuleType:
    from sieve_kernels.mlp import triton_grouped

    return triton_grouped


def torch_gpu() -> ModuleType:
    from sieve_kernels.mlp import torch_backend_gpu

    return torch_backend_gpu
