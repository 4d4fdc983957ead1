"""Argument checks shared by the operators: raised before any launch, in the same words on every backend."""

from torch import Tensor

FLOATS = ("torch.float64", "torch.float32", "torch.bfloat16", "torch.float16")


def require_float(**tensors: Tensor | None) -> None:
    """TypeError unless every tensor given is a 16, 32 or 64 bit float."""
    for name, tensor in tensors.items():
        if tensor is not None and str(tensor.dtype) not in FLOATS:
            raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")


def require_same_device(**tensors: Tensor | None) -> None:
    """ValueError unless all tensors given live on one device."""
    devices = {name: str(tensor.device) for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        raise ValueError(f"all tensors must be on one device, got {devices}")


def require_same_dtype(**tensors: Tensor | None) -> None:
    """TypeError unless all tensors given share one dtype."""
    dtypes = {name: str(tensor.dtype) for name, tensor in tensors.items() if tensor is not None}
    if len(set(dtypes.values())) > 1:
        raise TypeError(f"all tensors must have one dtype, got {dtypes}")


def describe(**tensors: Tensor | None) -> str:
    """Names and shapes of the tensors given, for a message."""
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items() if tensor is not None)
