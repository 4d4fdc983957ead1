"""A pair against `torch.compile` of two products, with and without its autotuning; an 8-bit pair against gemlite."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sieve_kernels
from bench.gpu import clock
from bench.gpu.job import Job, LeftOut, Place
from bench.gpu.layers import Layers, check
from bench.gpu.sizes import Sizes

MODES = {"compiled": "default", "max_autotune": "max-autotune-no-cudagraphs"}
"""Modes of `torch.compile` by their names in cells. CUDA graphs are recorded here, as for all contenders."""


def jobs(sizes: Sizes) -> list[Job]:
    shape = sizes.few_shapes[0]
    integers = [_integers(T, *shape, sizes) for T in sizes.peer_rows]
    compiled, tuned = ([_job(T, *shape, name, sizes) for T in sizes.peer_rows] for name in MODES)
    return [*compiled, *integers, *tuned]


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


def _integers(T: int, m: int, n: int, sizes: Sizes) -> Job:
    where = f"t{T}.{m}x{n}"
    cells = f"int8_over_gemlite.{where}", f"us.gemlite.{where}"

    @torch.no_grad()
    def run(place: Place) -> dict[str, float]:
        try:
            from gemlite.helper import A16W8_INT8
        except ImportError as error:
            raise LeftOut(f"gemlite cannot be imported: {error}") from None
        layers = Layers(place.device, sizes.multiple)
        x = layers.random(T, n)

        # Copies of the pairs, for cold weights: both contenders read 8 bits per element.
        pairs = clock.copies(lambda: layers.pair(m, n), 2 * sizes.cold, 4 * T * (n + m))
        quantize = A16W8_INT8(device=place.device, dtype=torch.bfloat16).from_weights
        theirs = [[quantize(factor.clone()) for factor in pair] for pair in pairs]
        ours = [[t for factor in pair for t in sieve_kernels.quantize_rows(factor, 8)] for pair in pairs]
        contenders = {
            "ours": [partial(sieve_kernels.lowrank_linear_quantized, x, *pair) for pair in ours],
            "gemlite": [lambda A=A, B=B: B(A(x)) for A, B in theirs],
        }

        # The two round the same factors differently, so the tolerance is wider.
        check("lowrank_linear_quantized", contenders["ours"][0](), contenders["gemlite"][0](), 4e-2)
        taken = clock.cold_seconds(contenders, place.device, sizes.rounds)
        return {cells[0]: taken["ours"] / taken["gemlite"], cells[1]: 1e6 * taken["gemlite"]}

    return Job(f"peers.gemlite.{where}", cells, run, seconds=20, patience=150)


def _pair(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return F.linear(F.linear(x, A), B)
