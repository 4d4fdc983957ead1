"""Common checks of the operators' arguments. They raise before any launch, with the same message on every backend.

They run on every call, so each compares first and builds a message only on failure.
"""

import math

import torch
from torch import Tensor

FLOATS = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


def require_float(name: str, tensor: Tensor) -> None:
    """TypeError unless the tensor is a 16, 32 or 64 bit float."""
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {describe(tensor)}")


def require_same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """TypeError unless both tensors have one dtype, ValueError unless both are on one device."""
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name} {describe(tensor)} and {other_name} {describe(other)} must have one dtype")
    require_same_device(name, tensor, other_name, other)


def require_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError unless both tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device} and {other_name} on {other.device}: they must share a device")


def describe(tensor: Tensor) -> str:
    """Shape and dtype, for a message."""
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def as_rows(x: Tensor) -> Tensor:
    """x [..., n] as a matrix [T, n]; n may be 0, which `reshape(-1, n)` refuses."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for x's device; torch cannot tell for tensors without memory."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def autocast(t: Tensor | None) -> Tensor | None:
    """The tensor in autocast's dtype, for use where autocast is on. As in torch, float64 stays."""
    if t is None or t.dtype == torch.float64 or not t.is_floating_point():
        return t
    return t.to(torch.get_autocast_dtype(t.device.type))
