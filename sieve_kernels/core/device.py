"""Properties of a device that kernels depend on; queried once per device, and only here.

Import the functions below but not `properties`, which tests replace here to simulate other devices.
"""

import os
from dataclasses import dataclass
from functools import lru_cache

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton kernels run in Triton's interpreter, on CPU tensors. Triton looks when it decorates a kernel, so the
variable must be set before this package is imported."""


@dataclass(frozen=True)
class Properties:
    """Properties of a device that kernels depend on.

    Attributes:
        architecture: "sm_90", "gfx942", …; "interpreter" for Triton's, "cpu" for a CPU.
        num_sms: multiprocessors.
        shared_memory: bytes of shared memory that a program may have.
        has_descriptors: whether tiles are copied by tensor descriptors (TMA), as NVIDIA's GPUs do from Hopper on.
    """

    architecture: str
    num_sms: int
    shared_memory: int
    has_descriptors: bool = False


INTERPRETER = Properties("interpreter", 4, 64 << 10)
"""The interpreter's device: a small GPU, so that small tests take every path."""


@lru_cache
def properties(device: torch.device) -> Properties:
    """The properties of a GPU; in the interpreter those of a small one."""
    if INTERPRETED:
        return INTERPRETER
    if device.type != "cuda":
        return Properties("cpu", 1, 0)
    found = torch.cuda.get_device_properties(device)
    if is_amd():
        architecture = getattr(found, "gcnArchName", "").split(":")[0] or f"gfx_{found.major}{found.minor}"
        return Properties(architecture, found.multi_processor_count, found.shared_memory_per_block)
    architecture = f"sm_{found.major}{found.minor}"
    memory = found.shared_memory_per_block_optin
    return Properties(architecture, found.multi_processor_count, memory, has_descriptors=found.major >= 9)


def architecture(device: torch.device) -> str:
    """The architecture, such as "sm_90" or "gfx942"."""
    return properties(device).architecture


def num_sms(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return properties(device).num_sms


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    return properties(device).shared_memory


def has_tma(device: torch.device) -> bool:
    """Whether the GPU copies tiles by tensor descriptors (TMA)."""
    return properties(device).has_descriptors


def is_amd() -> bool:
    """Whether this PyTorch is built for AMD's GPUs."""
    return torch.version.hip is not None
