"""A training step through a layer, forward and backward, against the library's products under autograd."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import sieve_kernels
from bench.gpu import clock
from bench.gpu.job import Job, Place
from bench.gpu.layers import Layers, check, pivoted, two
from bench.gpu.sizes import Sizes

Layer = Callable[..., Tensor | Sequence[Tensor]]


def jobs(sizes: Sizes) -> list[Job]:
    return [_job(kind, T, sizes) for T in sizes.training_rows for kind in ("pair", "pivoted", "group", "mlp")]


def _job(kind: str, T: int, sizes: Sizes) -> Job:
    cells = [f"training_over_library.{kind}.t{T}", f"us.training.{kind}.ours.t{T}", f"us.training.{kind}.library.t{T}"]

    def run(place: Place) -> dict[str, float]:
        inputs, ours, library = _layer(kind, T, Layers(place.device, sizes.multiple), sizes)
        for tensor in inputs:
            if tensor.is_floating_point():
                tensor.requires_grad_()
        with torch.enable_grad():
            steps = {name: _step(layer, inputs) for name, layer in (("ours", ours), ("library", library))}
            check(f"gradients of {kind}", steps["ours"](), steps["library"](), 0.05)
            # Each step waits for the device once, so host time counts, as in training.
            taken = clock.waited_seconds(steps, place.device, 5, sizes.rounds // 2)
        numbers = taken["ours"] / taken["library"], 1e6 * taken["ours"], 1e6 * taken["library"]
        return dict(zip(cells, numbers, strict=True))

    return Job(f"training.{kind}.t{T}", tuple(cells), run)


def _step(layer: Layer, inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Gradients of the inputs for fixed random gradients of the outputs."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    results = _several(layer(*inputs))
    torch.manual_seed(1)
    above = [torch.randn_like(result) for result in results]
    return lambda: torch.autograd.grad(_several(layer(*inputs)), wanted, above)


def _several(result: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (result,) if isinstance(result, Tensor) else result


def _layer(kind: str, T: int, layers: Layers, sizes: Sizes) -> tuple[list[Tensor], Layer, Layer]:
    """(input and weights, our layer, the library's layer)."""
    if kind == "group":
        n, ms = sizes.group
        return [layers.random(T, n), *(t for m in ms for t in layers.pair(m, n))], _our_group, _group
    if kind == "mlp":
        n, m = sizes.mlp
        weights = [*layers.pair(m, n), *layers.pair(m, n), *layers.pair(n, m)]
        return [layers.random(T, n), *weights], _our_mlp, _mlp
    m, n = sizes.few_shapes[0]
    if kind == "pivoted":
        return [layers.random(T, n), *layers.pivoted(m, n)], sieve_kernels.lowrank_linear_pivoted, pivoted
    return [layers.random(T, n), *layers.pair(m, n)], sieve_kernels.lowrank_linear, two


def _our_group(x: Tensor, *factors: Tensor) -> Sequence[Tensor]:
    return sieve_kernels.lowrank_linear_group(x, factors[::2], factors[1::2])


def _group(x: Tensor, *factors: Tensor) -> Sequence[Tensor]:
    return [two(x, A, B) for A, B in zip(factors[::2], factors[1::2], strict=True)]


def _our_mlp(x: Tensor, *factors: Tensor) -> Tensor:
    return sieve_kernels.lowrank_mlp(x, factors[:2], factors[2:4], factors[4:])


def _mlp(x: Tensor, *factors: Tensor) -> Tensor:
    return two(F.silu(two(x, *factors[:2])) * two(x, *factors[2:4]), *factors[4:])
