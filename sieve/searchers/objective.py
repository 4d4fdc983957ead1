"""What "small" means: parameters, bytes on disk, or seconds on this machine."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sieve.models.linears import weight_of
from sieve.models.matrix import DENSE, Matrix
from sieve.models.mlp_width import MlpWidth
from sieve.nn.fuse import fuse_, fused
from sieve_kernels.autotune.measure import medians, prepared

SizeOf = Callable[[Matrix, "int | str"], float]  # of one matrix at a rank, or "dense"

ROWS = 32  # tokens at a time: a short prompt
_RANKS, _REPEATS = 10, 7
_UNCACHED, _COPIES = 32 << 20, 16
Table = dict[str, list[tuple[int, float]]]  # "m x n" → (rank, seconds), ascending; rank 0 stands for dense


def parameters(matrix: Matrix, rank: int | str) -> float:
    """Weights that are stored at this rank or, of masks, that are not zero."""
    return matrix.size(rank)


def size_of(objective: str, dtype: torch.dtype, table: Table | None = None) -> SizeOf:
    """The size of a matrix at a rank by an objective.

    Args:
        dtype: that the model is stored in.
        table: of `measure`, for "latency". Between the ranks measured, times are interpolated.
    """
    if objective == "parameters":
        return parameters
    if objective == "bytes":
        return lambda matrix, rank: matrix.nbytes(rank, dtype.itemsize)

    def seconds(matrix: Matrix, rank: int | str) -> float:
        (_, dense), *pairs = table[_shape(matrix)]
        if rank == DENSE or not pairs:
            return dense
        ranks, times = zip(*pairs, strict=True)
        # A larger rank is never faster: what measures so is noise.
        return float(np.interp(rank, ranks, np.maximum.accumulate(times)))

    return seconds


def measure(model: nn.Module, matrices: Mapping[str, Matrix]) -> Table:
    """Seconds of one layer by shape and rank, run as pruned models run it (`sieve.nn.fuse`), its weights from memory.

    Medians of calls in turns, so that a slow moment hits all ranks; on a GPU of CUDA graphs, without the host's time.
    """
    table: Table = {}
    with fused(model):
        for matrix in matrices.values():
            if _shape(matrix) not in table:
                table[_shape(matrix)] = _times(model.get_submodule(matrix.name), matrix)
    return table


@torch.inference_mode()
def measure_together(model: PreTrainedModel, matrices: Iterable[Matrix]) -> float:
    """Seconds of all layers of these matrices, one after the other: what the sum of their sizes by latency predicts."""
    layers = [model.get_submodule(name) for matrix in matrices for name in matrix.names]
    inputs = [torch.randn(ROWS, _width(layer), device=model.device).to(model.dtype) for layer in layers]
    with fused(model):
        work = prepared(_one_after_the_other, (layers, inputs), model.device)
        return medians({"all": work}, model.device, _REPEATS)["all"]


@torch.inference_mode()
def _times(layer: nn.Module, matrix: Matrix) -> list[tuple[int, float]]:
    weight = weight_of(layer)
    device, dtype = weight.device, weight.dtype
    whole = isinstance(matrix, MlpWidth)
    layers: dict[int, nn.Module] = {0: fuse_(matrix.stand_in(matrix.n, device, dtype)) if whole else layer}
    for rank in sorted({max(1, matrix.max_rank * step // _RANKS) for step in range(1, _RANKS + 1)}):
        if rank <= matrix.max_rank:
            layers[rank] = fuse_(matrix.stand_in(rank, device, dtype))
    x = torch.randn(ROWS, matrix.n, device=device).to(dtype)
    # As many copies of a layer in a row as no cache holds together with those of the other ranks.
    copies = min(_COPIES, math.ceil(_UNCACHED / weight.nbytes))
    works = {}
    for rank, module in layers.items():
        rows = x[:, : module.in_features].contiguous() if whole else x
        modules = [module, *(deepcopy(module) for _ in range(copies - 1))]
        works[str(rank)] = prepared(_one_after_the_other, (modules, [rows] * copies), device)
    return [(int(rank), seconds / copies) for rank, seconds in medians(works, device, _REPEATS).items()]


def _one_after_the_other(layers: Sequence[nn.Module], inputs: Sequence[torch.Tensor]) -> None:
    for layer, x in zip(layers, inputs, strict=True):
        layer(x)


def _width(layer: nn.Module) -> int:
    """Numbers of a row that the layer reads."""
    return layer.nx if isinstance(layer, Conv1D) else layer.in_features


def predicted_seconds(sizes: SizeOf, matrices: Mapping[str, Matrix], plan: Mapping[str, int | str]) -> dict[str, float]:
    """What all layers take by these sizes, which are of "latency": "dense", and "pruned" by the plan."""
    return {
        "dense": sum(sizes(matrix, DENSE) for matrix in matrices.values()),
        "pruned": sum(sizes(matrix, plan.get(name, DENSE)) for name, matrix in matrices.items()),
    }


def _shape(matrix: Matrix) -> str:
    if isinstance(matrix, MlpWidth):
        return f"{matrix.per_channel} x {matrix.n} channels"
    return f"{matrix.m} x {matrix.n}{' pivoted' if matrix.pivoted else ''}"
