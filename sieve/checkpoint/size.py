"""Bytes of a model's weights, in memory and on disk."""

from pathlib import Path

from torch import nn

from sieve.nn.formats.base import format_of
from sieve.nn.formats.masked import masked_layers
from sieve.nn.formats.quantized_pair import QuantizedPair

_WEIGHTS = ("*.safetensors", "*.bin")


def model_bytes(model: nn.Module) -> int:
    """Bytes of what is saved: parameters, tied ones counted once, and the buffers of pruned layers."""
    buffers = [tensor for layer in model.modules() if format_of(layer) is not None for tensor in layer.buffers()]
    return sum(tensor.nbytes for tensor in (*model.parameters(), *buffers))


def model_parameters(model: nn.Module) -> int:
    """Number of values that decide what the model computes: parameters, tied ones counted once, without masked zeros.

    The integers of quantised pairs count, too.
    """
    weights = [model.get_submodule(name).weight for name in masked_layers(model)]
    zeros = sum(weight.numel() - int(weight.count_nonzero()) for weight in weights)
    integers = 0
    for layer in model.modules():
        if isinstance(format := format_of(layer), QuantizedPair):
            integers += format.numel(layer.out_features, layer.in_features, format.rank)
    return sum(parameter.numel() for parameter in model.parameters()) + integers - zeros


def weight_bytes(path: str | Path) -> int:
    """Bytes of the weight files in a model's folder, headers included."""
    return sum(file.stat().st_size for pattern in _WEIGHTS for file in Path(path).glob(pattern))
