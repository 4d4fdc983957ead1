"""Where 2:4 masks save time: torch's semi-structured tensors, on CUDA devices of compute capability 8.0 up.

Everywhere else a masked matrix is a dense one with zeros, and takes as long.
"""

import warnings

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

from sieve.nn.formats.masked import masked_layers
from sieve.nn.low_rank import holds_plain_tensors
from sieve.utils.messages import one_line

PATTERN = "2:4"
_DTYPES = (torch.float16, torch.bfloat16)
_ROWS, _COLUMNS = 32, 64  # what torch's compressed formats want both sides to be multiples of


def runs_sparse(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this device multiplies by 2:4 matrices of this dtype faster than by dense ones."""
    if device.type != "cuda" or torch.version.hip or dtype not in _DTYPES:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def sparse_(model: nn.Module) -> int:
    """Compress the weights of 2:4 masks where the device can use that; in place, for inference.

    Such weights take no gradients and cannot be saved: load the folder again for that.

    Returns: how many matrices were compressed; 0 without such masks or such a device.
    """
    count = 0
    for name, format in masked_layers(model).items():
        if format.pattern != PATTERN:
            continue
        layer = model.get_submodule(name)
        weight = layer.weight
        fits = weight.shape[0] % _ROWS == 0 and weight.shape[1] % _COLUMNS == 0
        plain = type(layer) is nn.Linear and holds_plain_tensors(layer)
        if not (plain and fits and runs_sparse(weight.device, weight.dtype)):
            continue
        try:
            compressed = to_sparse_semi_structured(weight.detach())
        except (RuntimeError, NotImplementedError, ValueError) as error:  # this build of torch lacks the kernels
            warnings.warn(f"2:4 masks run dense: {one_line(error)}", stacklevel=2)
            return count
        layer.weight = nn.Parameter(compressed, requires_grad=False)
        count += 1
    return count
