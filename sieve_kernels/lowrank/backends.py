"""Modules of this package that need Triton, imported at first use."""

from types import ModuleType


def triton() -> ModuleType:
    from sieve_kernels.lowrank import triton

    return triton


def torch_gpu() -> ModuleType:
    from sieve_kernels.lowrank import torch_backend_gpu

    return torch_backend_gpu
