"""What "small" means: parameters, bytes on disk, or seconds on this machine."""

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from sieve.models.linears import weight_of
from sieve.models.matrix import DENSE, Matrix
from sieve.models.mlp_width import MlpWidth

SizeOf = Callable[[Matrix, "int | str"], float]  # of one matrix at a rank, or "dense"

ROWS = 32  # tokens at a time: a short prompt
_RANKS, _REPEATS = 10, 7
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
    """Seconds of one layer by shape and rank: medians of interleaved calls, so that a slow moment hits all ranks."""
    table: Table = {}
    for matrix in matrices.values():
        if _shape(matrix) not in table:
            table[_shape(matrix)] = _times(model.get_submodule(matrix.name), matrix)
    return table


@torch.inference_mode()
def _times(layer: nn.Module, matrix: Matrix) -> list[tuple[int, float]]:
    weight = weight_of(layer)
    x = torch.randn(ROWS, matrix.n, device=weight.device).to(weight.dtype)
    whole = isinstance(matrix, MlpWidth)
    layers: dict[int, nn.Module] = {0: matrix.stand_in(matrix.n, weight.device, weight.dtype) if whole else layer}
    for rank in sorted({max(1, matrix.max_rank * step // _RANKS) for step in range(1, _RANKS + 1)}):
        if rank <= matrix.max_rank:
            layers[rank] = matrix.stand_in(rank, weight.device, weight.dtype)
    taken: dict[int, list[float]] = {rank: [] for rank in layers}
    for _ in range(_REPEATS):
        for rank, module in layers.items():
            rows = x[:, : module.in_features] if whole else x
            module(rows)  # its weights into the cache, as far as they fit
            _wait(x)
            started = time.perf_counter()
            module(rows)
            _wait(x)
            taken[rank].append(time.perf_counter() - started)
    return [(rank, statistics.median(times)) for rank, times in taken.items()]


def _wait(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _shape(matrix: Matrix) -> str:
    if isinstance(matrix, MlpWidth):
        return f"{matrix.per_channel} x {matrix.n} channels"
    return f"{matrix.m} x {matrix.n}{' pivoted' if matrix.pivoted else ''}"
