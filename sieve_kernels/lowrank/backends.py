"""Modules of this room that need Triton, imported where they are needed first."""

from types import ModuleType


def triton() -> ModuleType:
    from sieve_kernels.lowrank import triton

    return triton


def torch_gpu() -> ModuleType:
    from sieve_kernels.lowrank import torch_backend_gpu

    return torch_backend_gpu
