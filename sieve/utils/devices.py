"""What a device's failures look like, and the one line that the user reads of them.

Imports no torch: the command line asks before it is loaded, and for errors that only torch can have raised.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from sieve.errors import DeviceError
from sieve.utils.messages import one_line

if TYPE_CHECKING:
    import torch

# Allocators other than torch's own for GPUs raise plain RuntimeErrors: the CPU's, the driver's, cuBLAS and Triton.
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_FAILED = ("CUDA error", "HIP error", "Triton Error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "cuDNN error", "NVML_")
# What lowers the need of a stage, by its name.
_ADVICE = {
    "load": "a smaller model",
    "dense": "shorter prompts",
    "calibrate": "--method output_aligned, which needs no gradients",
    "search": "a smaller --memory",
    "refit": "--no-refit",
    "heal": "--heal lora or --heal none",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or this machine, had no memory for what was asked of it."""
    if isinstance(error, MemoryError) or _is_torch(error, "OutOfMemoryError"):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def device_failed(error: BaseException) -> bool:
    """Whether the error says something about the device and nothing about the work: no memory, or a failure of it."""
    if is_out_of_memory(error) or _is_torch(error, "AcceleratorError"):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _FAILED)


def device_error(error: BaseException, stage: str | None = None) -> DeviceError | None:
    """One line for the user, if the device has failed; None for any other error.

    stage: of the run, which the line names.
    """
    if not device_failed(error):
        return None
    where = f" in the stage {stage}" if stage else ""
    reason = one_line(error, 160)
    if is_out_of_memory(error):
        advice = ", ".join(filter(None, (_ADVICE.get(stage or ""), "--dtype bfloat16", "--device cpu")))
        return DeviceError(
            f"there is not enough memory{where}, however small its passes ({reason}): free some on the device, or use "
            f"{advice}"
        )
    return DeviceError(
        f"the device failed{where} ({reason}): no more can be done in this process; see that the device works, and "
        "start the command again"
    )


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on the device."""
    if device.type == "cuda":
        return sys.modules["torch"].cuda.mem_get_info(device)[0]
    # Only runs ask: the command line starts without it.
    import psutil

    return psutil.virtual_memory().available


def free_cached_memory(device: torch.device) -> None:
    """Give back what torch keeps for later. To be called outside of the `except` clause: its error holds tensors."""
    gc.collect()
    if device.type == "cuda":
        sys.modules["torch"].cuda.empty_cache()


def _is_torch(error: BaseException, name: str) -> bool:
    return any(kind.__name__ == name and kind.__module__.startswith("torch") for kind in type(error).__mro__)
