"""`Launch`: repeated launches of a Triton kernel for the host time of one C call.

`kernel[grid](…)` binds, specialises and hashes every argument on every call: 20 microseconds on a machine where a
library product takes 23 in all. An operator that is called again with the same shapes has nothing to decide, so it
keeps a `Launch`, in which everything but the tensors is fixed.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor


class Launch:
    """A kernel with its grid and all its arguments but the tensors.

    The kernel's parameters are pointers, then scalars, then constants. The first call goes through Triton's compiler;
    later ones pass addresses to the compiled kernel. Callers must keep one `Launch` per device, per combination of
    dtypes, and per set of tensors that begin at a multiple of 16 bytes, because Triton specialises on those.

    Args:
        kernel: a `triton.jit` function.
        grid: programs along up to three axes.
        scalars: the arguments behind the pointers, in order.
        tensors: names of the pointers that calls pass, in that order; other pointers are None. None: all of them.
        constants: `tl.constexpr` parameters and options (num_warps, num_stages, launch_pdl, …) by name.
    """

    __slots__ = ("_device", "_holes", "_run", "_stream", "_template", "constants", "grid", "kernel", "scalars")

    def __init__(
        self,
        kernel: triton.JITFunction,
        grid: Sequence[int],
        scalars: Sequence[object],
        tensors: Sequence[str] | None = None,
        **constants,
    ):
        self.kernel, self.scalars, self.constants = kernel, tuple(scalars), constants
        self.grid = (*grid, 1, 1)[:3]
        names = kernel.arg_names
        behind = [name for name in names if name in constants]
        pointers = names[: len(names) - len(behind) - len(self.scalars)]
        self._holes = [pointers.index(name) for name in (pointers if tensors is None else tensors)]
        self._template = [*(None for _ in pointers), *self.scalars, *(constants[name] for name in behind)]
        self._run: Callable | None = None
        self._device = -1
        self._stream: Callable[[int], int] | None = None

    def __call__(self, *tensors: Tensor | None) -> None:
        if self._run is None or torch._C._cuda_getDevice() != self._device:
            self._with_checks(tensors)
            return
        arguments = self._template.copy()
        for hole, tensor in zip(self._holes, tensors):  # noqa: B905 (strict costs time; the first call has checked)
            if tensor is not None:
                arguments[hole] = tensor.data_ptr()
        self._run(self._stream(self._device), *arguments)

    def _with_checks(self, tensors: Sequence[Tensor | None]) -> None:
        """The path of the first call, and of every call while another device is current."""
        behind = sum(name in self.constants for name in self.kernel.arg_names)
        pointers: list[object] = [None] * (len(self._template) - len(self.scalars) - behind)
        for hole, tensor in zip(self._holes, tensors, strict=True):
            pointers[hole] = self._passed(hole, tensor)
        if not tensors[0].is_cuda:  # interpreted, or compiled ahead of time
            self.kernel[self.grid](*pointers, *self.scalars, **self.constants)
            return
        with torch.cuda.device(tensors[0].device):
            if self._run is not None:
                self(*tensors)
                return
            compiled = self.kernel[self.grid](*pointers, *self.scalars, **self.constants)
        if isinstance(compiled, CompiledKernel):
            self._run = _runner(compiled, self.grid)
            self._stream, self._device = torch._C._cuda_getCurrentRawStream, tensors[0].get_device()

    def _passed(self, at: int, tensor: Tensor | None) -> object:
        """The argument that Triton takes for the tensor of this parameter."""
        return tensor


class TileLaunch(Launch):
    """A `Launch` of a kernel that copies tiles by TMA: Triton takes a descriptor of each tensor.

    All calls must pass tensors with the shapes and strides of the first call's.

    Args:
        boxes: the shapes of the tensors' tiles.
    """

    __slots__ = ("_held", "boxes")

    def __init__(
        self,
        kernel: triton.JITFunction,
        grid: Sequence[int],
        boxes: Sequence[Sequence[int]],
        scalars: Sequence[object],
        **constants,
    ):
        super().__init__(kernel, grid, scalars, **constants)
        self.boxes = [list(box) for box in boxes]
        self._held: list[dict[str, object]] = [{} for _ in boxes]  # the descriptors without their tensors

    def __call__(self, *tensors: Tensor) -> None:
        if self._run is None or torch._C._cuda_getDevice() != self._device:
            self._with_checks(tensors)
            return
        self._run(self._stream(self._device), *map(_describe, tensors, self._held), *self._template[len(tensors) :])

    def _passed(self, at: int, tensor: Tensor) -> TensorDescriptor:
        descriptor = TensorDescriptor.from_tensor(tensor, self.boxes[at])
        self._held[at] = {name: value for name, value in vars(descriptor).items() if name != "base"}
        return descriptor


def _describe(tensor: Tensor, held: dict[str, object]) -> TensorDescriptor:
    """A descriptor without checks: an equal one has passed them, and they take longer than a launch."""
    descriptor = object.__new__(TensorDescriptor)
    descriptor.__dict__.update(held, base=tensor)
    return descriptor


def _runner(compiled: CompiledKernel, grid: tuple[int, int, int]) -> Callable[..., None]:
    """The function that launches, called with a stream and the kernel's arguments."""
    launcher = compiled.run
    metadata, function = compiled.packed_metadata, compiled.function
    if _calls_c(launcher):
        modes = launcher.launch_cooperative_grid, launcher.launch_pdl
        launch = partial(launcher.launch, *grid)

        def run(stream, *arguments):
            launch(stream, function, *modes, None, None, metadata, None, None, None, *arguments)

    else:
        launch = partial(launcher, *grid)

        def run(stream, *arguments):
            launch(stream, function, metadata, None, None, None, *arguments)

    return run


def _calls_c(launcher: object) -> bool:
    """Whether Triton's launcher only forwards to C code, as for NVIDIA's GPUs up to version 3.6 if a kernel needs no
    scratch memory."""
    return (
        type(launcher).__name__ == "CudaLauncher"
        and not hasattr(launcher, "arg_annotations")
        and all(getattr(launcher, f"{kind}_scratch_size", 1) == 0 for kind in ("global", "profile"))
    )
