"""Tuning: the fastest implementations and launch configs on this device, measured by `sieve_kernels.autotune`.

First come sweeps: calls that miss their goal in `docs/gpu.md`, or whose tiles were never measured. Then comes every
operator by itself. The choices are stored with the results, and on a GPU also in the package: the committed file
serves GPUs of this name and others of its architecture.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from bench.gpu.job import Job, Place
from bench.gpu.layers import Layers
from bench.gpu.sizes import FULL, SMOKE, Sizes
from sieve_kernels import quantize_rows
from sieve_kernels.autotune import __main__ as tune
from sieve_kernels.autotune.measure import Measured, compile_candidates
from sieve_kernels.core import dispatch, tuning_cache

FILE = "choices.json"
COMPILERS = 12
"""The largest number of processes that compile the candidates of a call."""


@dataclass(frozen=True)
class Sweep:
    """Calls of one operator: `arguments(layers, sizes)` returns the arguments of each call, x first."""

    name: str
    operator: str
    arguments: Callable[[Layers, Sizes], list[Sequence]]

    def calls(self, device: torch.device, sizes: Sizes) -> list[tuple[dispatch.Call, Sequence]]:
        made = self.arguments(Layers(device, sizes.multiple), sizes)
        return [(dispatch.Call(device, one[0].dtype, one[0].shape[0], _rank(one)), one) for one in made]


def _rank(arguments: Sequence) -> int:
    """The largest rank among the pairs of a call, as the operators compute it."""
    factors = arguments[1]
    if isinstance(factors, torch.Tensor):
        return factors.shape[0]
    return max((one if isinstance(one, torch.Tensor) else one[0]).shape[0] for one in factors)


def _pairs(layers: Layers, sizes: Sizes) -> list[Sequence]:
    """Pairs whose first factor has more tiles of 8 rows than the GPU has multiprocessors."""
    return [(layers.random(sizes.sweep_rows.pair, n), *layers.pair(m, n), None) for m, n in sizes.few_shapes]


def _pivoted(layers: Layers, sizes: Sizes) -> list[Sequence]:
    return [(layers.random(sizes.sweep_rows.pair, n), *layers.pivoted(m, n), None) for m, n in sizes.few_shapes]


def _group(layers: Layers, sizes: Sizes) -> list[Sequence]:
    n, ms = sizes.group
    As, Bs = zip(*(layers.pair(m, n) for m in ms), strict=True)
    return [(layers.random(sizes.sweep_rows.group, n), list(As), list(Bs), None)]


def _mlp(layers: Layers, sizes: Sizes) -> list[Sequence]:
    n, m = sizes.mlp
    pairs = [layers.pair(m, n), layers.pair(m, n), layers.pair(n, m)]
    return [(layers.random(sizes.sweep_rows.mlp, n), pairs, "silu")]


def _integers(layers: Layers, sizes: Sizes) -> list[Sequence]:
    m, n = sizes.few_shapes[0]
    return [(layers.random(1, n), *(t for factor in layers.pair(m, n) for t in quantize_rows(factor, 8)), None)]


SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep("pivoted", "lowrank_linear_pivoted", _pivoted),
        Sweep("pair", "lowrank_linear", _pairs),
        Sweep("int8", "lowrank_linear_quantized", _integers),
        Sweep("group", "lowrank_linear_group", _group),
        Sweep("mlp", "lowrank_mlp", _mlp),
    )
}


def jobs(sizes: Sizes) -> list[Job]:
    return [
        *(Job(f"sweep.{name}", (f"sweep.{name}",), _sweep(name, sizes), seconds=20, patience=300) for name in SWEEPS),
        *(
            Job(f"choices.{name}", (f"choices.{name}",), _measure(name, sizes), seconds=15, patience=600)
            for name in tune.CASES_BY_OPERATOR
        ),
    ]


def _sweep(name: str, sizes: Sizes) -> Callable[[Place], dict[str, float]]:
    """A job's function that tunes the calls of a sweep and returns how many choices it made."""

    @torch.inference_mode()
    def run(place: Place) -> dict[str, float]:
        sweep, measured = SWEEPS[name], Measured(place.device, sizes.rounds)
        if place.device.type == "cuda":
            workers = min(COMPILERS, os.cpu_count() or 1)
            with get_context("spawn").Pool(workers) as pool:
                pool.starmap(_compile, [(name, share, workers, sizes == SMOKE) for share in range(workers)])
        for call, arguments in sweep.calls(place.device, sizes):
            for entry in measured.add_call(sweep.operator, call, arguments):
                tune.say(entry)
        _write(place, measured, sizes)
        return {f"sweep.{name}": float(len(measured.choices) + len(measured.configs))}

    return run


def _compile(name: str, share: int, count: int, smoke: bool) -> None:
    """Compile one of `count` parts of a sweep's candidates; runs in a process of its own."""
    device, sizes = torch.device("cuda", 0), SMOKE if smoke else FULL
    with torch.inference_mode():
        for call, arguments in SWEEPS[name].calls(device, sizes):
            compile_candidates(SWEEPS[name].operator, call, arguments, share, count)


def _write(place: Place, measured: Measured, sizes: Sizes) -> None:
    """Store the choices with the results and, from a GPU, in the package."""
    if not measured.choices and not measured.configs:
        return
    name, hardware = tuning_cache.device_name(place.device), tuning_cache.hardware(place.device)
    tuning_cache.write(place.folder / FILE, name, measured.choices, hardware, list(measured.configs.values()))
    _ship(place, sizes)


def _ship(place: Place, sizes: Sizes) -> None:
    if sizes.ships:
        tuning_cache.SHIPPED.mkdir(exist_ok=True)
        name = tuning_cache.file_name(tuning_cache.device_name(place.device))
        shutil.copy(place.folder / FILE, tuning_cache.SHIPPED / name)


def _measure(operator: str, sizes: Sizes) -> Callable[[Place], dict[str, float]]:
    def run(place: Place) -> dict[str, float]:
        file = place.folder / FILE
        options = ["--device", place.device.type, "--operators", operator, "--output", str(file), *sizes.choices]
        if tune.main(options):
            raise RuntimeError("sieve_kernels.autotune has failed")
        if not file.exists():  # nothing to choose yet
            return {f"choices.{operator}": 0.0}
        _ship(place, sizes)
        chosen = json.loads(file.read_text(encoding="utf-8"))["choices"]
        return {f"choices.{operator}": float(sum(entry["operator"] == operator for entry in chosen))}

    return run
