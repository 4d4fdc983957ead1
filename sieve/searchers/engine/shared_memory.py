"""An object for other processes, its tensors apart: those of one machine then read one copy of them.

Ray hands NumPy arrays to all processes of a machine as views of one shared memory; tensors it would copy for each.
"""

import io
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sieve.searchers.engine.remote_code import Sources, brought_code, import_from

# The object without its tensors, their bytes, and the code that models have brought.
Packed = tuple[bytes, list[np.ndarray], Sources]


def pack(value: Any) -> Packed:
    """The object, whatever it is made of (functions, too), and uint8 arrays [bytes], one for each tensor in it.

    The other process needs the packages that the object's classes are from, but not what a model brought itself.
    """
    from ray.cloudpickle import Pickler

    arrays: list[np.ndarray] = []
    contents: dict[tuple, int] = {}  # memory → which array
    places: dict[int, tuple[tuple, Tensor]] = {}  # with the tensor, so that no other one gets its id

    class Apart(Pickler):
        def persistent_id(self, value: Any) -> tuple | None:
            if type(value) not in (Tensor, nn.Parameter):
                return None
            if id(value) not in places:
                memory = value.data_ptr(), value.dtype, value.shape, value.stride()
                if memory not in contents:
                    contents[memory] = len(arrays)
                    arrays.append(_bytes(value))
                places[id(value)] = (len(places), contents[memory], *_description(value)), value
            return places[id(value)][0]

    frame = io.BytesIO()
    Apart(frame).dump(value)
    return frame.getvalue(), arrays, brought_code()


def unpack(packed: Packed) -> Any:
    """The object again. Its CPU tensors are views of the arrays, to be read only; what was one tensor is one again."""
    import pickle

    frame, arrays, sources = packed
    import_from(sources)
    tensors: dict[int, Tensor] = {}

    class Together(pickle.Unpickler):
        def persistent_load(self, place: tuple) -> Tensor:
            number, index, *description = place
            if number not in tensors:
                tensors[number] = _tensor(arrays[index], *description)
            return tensors[number]

    return Together(io.BytesIO(frame)).load()


def _description(tensor: Tensor) -> tuple:
    """dtype, shape and order of the dimensions in memory, whether a parameter, and where it lives."""
    order = _order(tensor)
    shape = [tensor.shape[dimension] for dimension in order]
    return tensor.dtype, shape, order, type(tensor) is nn.Parameter, tensor.device.type


def _bytes(tensor: Tensor) -> np.ndarray:
    rows = tensor.detach().permute(_order(tensor)).contiguous()
    return rows.reshape(-1).view(torch.uint8).cpu().numpy()


def _tensor(array: np.ndarray, dtype: torch.dtype, shape: list[int], order: list[int], parameter: bool, device: str):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(array, dtype=dtype) if array.size else torch.empty(0, dtype=dtype)
    rows = flat.reshape(shape).to(device)
    tensor = rows.permute([order.index(dimension) for dimension in range(len(order))])
    return nn.Parameter(tensor, requires_grad=False) if parameter else tensor


def _order(tensor: Tensor) -> list[int]:
    """Dimensions, the one with the largest steps first: products of transposed weights round otherwise."""
    return sorted(range(tensor.dim()), key=lambda dimension: -tensor.stride(dimension))
