"""Bytes of a model's weights, in memory and on disk."""

from pathlib import Path

from torch import nn

_WEIGHTS = ("*.safetensors", "*.bin")


def model_bytes(model: nn.Module) -> int:
    """Bytes of the parameters, tied ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def weight_bytes(path: str | Path) -> int:
    """Bytes of the weight files in a model's folder, headers included."""
    return sum(file.stat().st_size for pattern in _WEIGHTS for file in Path(path).glob(pattern))
