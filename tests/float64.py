"""Evaluate a model in float64 throughout: a difference then comes from the algorithm and not from rounding.

In float32 the last digits of a log-likelihood depend on the machine: matrix products sum in another order for every
number of rows, and a model may amplify a rounding error (Mamba's scan: 3e-4 nats). In float64 the same claim, "this
shortcut changes nothing", can be checked to 1e-9 everywhere.
"""

import copy

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel


class Float64(TorchFunctionMode):
    """While active, code that asks for float32 gets float64: norms, softmax and scans go through float32 otherwise."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            return args[0].double()
        return function(*map(_wide, args), **{key: _wide(value) for key, value in (kwargs or {}).items()})


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with weights and buffers in float64, to be called inside `Float64()`."""
    wide = copy.deepcopy(model).double()
    if hasattr(model.config, "num_experts"):
        wide.set_experts_implementation("eager")  # the grouped product does not support float64
    return wide


def _wide(value):
    return torch.float64 if value is torch.float32 else value
