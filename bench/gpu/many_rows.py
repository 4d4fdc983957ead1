"""Layers of 64 or more rows: a pair against two library products, for every shape of `bench.shapes`."""

from functools import partial

import torch
import torch.nn.functional as F

import sieve_kernels
from bench.gpu import clock
from bench.gpu.job import Job, Place
from bench.gpu.layers import Layers, check, pivoted, two
from bench.gpu.sizes import Sizes

RATIOS = {
    "pair_over_two": ("pair", "two"),
    "pivoted_over_pair": ("pivoted", "pair"),
    "pivoted_over_dense": ("pivoted", "dense"),
}


def jobs(sizes: Sizes) -> list[Job]:
    """All numbers of rows for one shape, then for the next. Cells of `few_rows` are not repeated."""
    return [_job(T, m, n, sizes) for m, n in sizes.many_shapes for T in sizes.many_rows]


def _job(T: int, m: int, n: int, sizes: Sizes) -> Job:
    where = f"t{T}.{m}x{n}"
    cells = [f"{ratio}.{where}" for ratio in RATIOS] + [
        f"us.{name}.{where}" for name in ("dense", "two", "pair", "pivoted")
    ]
    return Job(f"many.{where}", tuple(cells), lambda place: measure(place, T, m, n, sizes))


@torch.no_grad()
def measure(place: Place, T: int, m: int, n: int, sizes: Sizes) -> dict[str, float]:
    """Ratios of times, and microseconds per call."""
    layers = Layers(place.device, sizes.multiple)
    x = layers.random(T, n)
    copies = partial(clock.copies, cold=sizes.cold, beside=2 * T * (n + m))
    pairs = copies(lambda: layers.pair(m, n))
    of_pivoted = copies(lambda: layers.pivoted(m, n))
    contenders = {
        "dense": [partial(F.linear, x, *W) for W in copies(lambda: layers.dense(m, n))],
        "two": [partial(two, x, *pair) for pair in pairs],
        "pair": [partial(sieve_kernels.lowrank_linear, x, *pair) for pair in pairs],
        "pivoted": [partial(sieve_kernels.lowrank_linear_pivoted, x, *P) for P in of_pivoted],
    }
    check("lowrank_linear", contenders["pair"][0](), contenders["two"][0]())
    check("lowrank_linear_pivoted", contenders["pivoted"][0](), pivoted(x, *of_pivoted[0]))
    taken = clock.cold_seconds(contenders, place.device, sizes.rounds)
    where = f"t{T}.{m}x{n}"
    ratios = {f"{ratio}.{where}": taken[ours] / taken[theirs] for ratio, (ours, theirs) in RATIOS.items()}
    return ratios | {f"us.{name}.{where}": 1e6 * value for name, value in taken.items()}
