"""Launching a Triton kernel for the host's time of one C call.

`kernel[grid](…)` binds, specialises and hashes every argument on every call: 10 to 20 microseconds, where a library
product costs as much in all. An operator that is called again with the same shapes has nothing to decide anew, so it
keeps a `Launch`, in which only the tensors are open.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver


class Launch:
    """A kernel with its grid and all its arguments but the tensors.

    The kernel's parameters are the tensors, then the scalars, then the constants. The first call goes through Triton's
    compiler; later ones pass pointers to the compiled kernel. So whoever keeps a `Launch` must keep one for each
    combination of dtypes and of what Triton specialises on: which tensors are None, and which begin at a multiple of
    16 bytes (`alignment`).

    Args:
        kernel: a `triton.jit` function.
        grid: programs along up to three axes.
        scalars: the arguments behind the tensors, in order.
        constants: `tl.constexpr` parameters and options (num_warps, num_stages, launch_pdl, …) by name.
    """

    __slots__ = ("_arguments", "_compiled", "constants", "grid", "kernel", "scalars")

    def __init__(self, kernel: triton.JITFunction, grid: Sequence[int], scalars: Sequence[object], **constants):
        self.kernel, self.scalars, self.constants = kernel, tuple(scalars), constants
        self.grid = (*grid, 1, 1)[:3]
        self._compiled: CompiledKernel | None = None
        self._arguments: tuple = ()  # behind the tensors, as the compiled kernel takes them

    def __call__(self, *tensors: Tensor | None) -> None:
        compiled, first = self._compiled, tensors[0]
        if first.is_cuda and first.get_device() != driver.active.get_current_device():
            with torch.cuda.device(first.device):
                self(*tensors)
        elif compiled is None:
            self._first(tensors)
        else:
            compiled.run(
                *self.grid,
                driver.active.get_current_stream(first.get_device()),
                compiled.function,
                compiled.packed_metadata,
                None,
                None,
                None,
                *[None if tensor is None else tensor.data_ptr() for tensor in tensors],
                *self._arguments,
            )

    def _first(self, tensors: Sequence[Tensor | None]) -> None:
        compiled = self.kernel[self.grid](*tensors, *self.scalars, **self.constants)
        if isinstance(compiled, CompiledKernel):  # neither interpreted nor compiled for a target that is not there
            behind = self.kernel.arg_names[len(tensors) + len(self.scalars) :]
            self._arguments = (*self.scalars, *(self.constants[name] for name in behind))
            self._compiled = compiled
