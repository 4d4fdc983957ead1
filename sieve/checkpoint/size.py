"""Bytes of a model's weights, in memory and on disk."""

from pathlib import Path

from torch import nn

from sieve.nn.low_rank import PivotedLinear

_WEIGHTS = ("*.safetensors", "*.bin")


def model_bytes(model: nn.Module) -> int:
    """Bytes of what is saved: parameters, tied ones counted once, and the permutations of pivoted pairs."""
    permutations = [layer.permutation for layer in model.modules() if isinstance(layer, PivotedLinear)]
    return sum(tensor.nbytes for tensor in (*model.parameters(), *permutations))


def model_parameters(model: nn.Module) -> int:
    """Numbers that decide what the model computes: parameters, tied ones counted once, less the zeros of its masks."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    weights = [model.get_submodule(name).weight for name in getattr(config, "masks", {})]
    zeros = sum(weight.numel() - int(weight.count_nonzero()) for weight in weights)
    return sum(parameter.numel() for parameter in model.parameters()) - zeros


def weight_bytes(path: str | Path) -> int:
    """Bytes of the weight files in a model's folder, headers included."""
    return sum(file.stat().st_size for pattern in _WEIGHTS for file in Path(path).glob(pattern))
