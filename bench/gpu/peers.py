"""A pair beside `torch.compile` of two products, as it is and with its own tuning."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sieve_kernels
from bench.gpu import clock
from bench.gpu.job import Job, Place
from bench.gpu.layers import Layers, check
from bench.gpu.sizes import Sizes

MODES = {"compiled": "default", "max_autotune": "max-autotune-no-cudagraphs"}
"""Modes of `torch.compile` by what a cell calls them. Graphs are ours, as for all others."""


def jobs(sizes: Sizes) -> list[Job]:
    return [_job(T, *sizes.few_shapes[0], name, sizes) for name in MODES for T in sizes.peer_rows]


def _job(T: int, m: int, n: int, name: str, sizes: Sizes) -> Job:
    where = f"t{T}.{m}x{n}"
    cells = f"pair_over_{name}.{where}", f"us.{name}.{where}"

    @torch.no_grad()
    def run(place: Place) -> dict[str, float]:
        torch.compiler.reset()
        layers = Layers(place.device, sizes.multiple)
        x, pairs = layers.random(T, n), clock.copies(lambda: layers.pair(m, n), sizes.cold, 2 * T * (n + m))
        compiled = torch.compile(_pair, fullgraph=True, dynamic=False, mode=MODES[name])
        contenders = {
            "ours": [partial(sieve_kernels.lowrank_linear, x, *pair) for pair in pairs],
            name: [partial(compiled, x, *pair) for pair in pairs],
        }
        check("lowrank_linear", contenders["ours"][0](), contenders[name][0]())
        taken = clock.cold_seconds(contenders, place.device, sizes.rounds)
        return {cells[0]: taken["ours"] / taken[name], cells[1]: 1e6 * taken[name]}

    return Job(f"peers.{name}.{where}", cells, run, seconds=20, patience=150)


def _pair(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return F.linear(F.linear(x, A), B)
