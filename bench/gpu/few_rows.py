"""Layers of few rows with cold weights: dense, two library products, and plain, pivoted and quantised pairs."""

from functools import partial

import torch
import torch.nn.functional as F

import sieve_kernels
from bench.gpu import ceilings, clock
from bench.gpu.job import Job, Place
from bench.gpu.layers import Layers, check, pivoted, two
from bench.gpu.sizes import Sizes
from sieve_kernels.lowrank.quantize import dequantize_rows

RATIOS = {
    "pair_over_dense": ("pair", "dense"),
    "pair_over_few_two": ("pair", "two"),
    "pivoted_over_pair": ("pivoted", "pair"),
    "int8_over_bf16": ("int8", "pair"),
    "int4_over_bf16": ("int4", "pair"),
    "linear_over_dense": ("linear", "dense"),
}
CONTENDERS = ("dense", "linear", "two", "pair", "pivoted", "int8", "int4")


def jobs(sizes: Sizes) -> list[Job]:
    """All shapes for one number of rows, then for the next; and the output head at one and 16 rows."""
    found = [_job(T, m, n, sizes) for T in sizes.few_rows for m, n in sizes.few_shapes]
    place = 2 * len(sizes.few_shapes)
    return [*found[:place], *(_head(T, sizes) for T in sizes.few_rows[:2]), *found[place:]]


def _job(T: int, m: int, n: int, sizes: Sizes) -> Job:
    where = f"t{T}.{m}x{n}"
    cells = [f"{ratio}.{where}" for ratio in (*RATIOS, "of_bandwidth")] + [f"us.{name}.{where}" for name in CONTENDERS]
    return Job(f"few.{where}", tuple(cells), lambda place: measure(place, T, m, n, sizes))


@torch.no_grad()
def measure(place: Place, T: int, m: int, n: int, sizes: Sizes) -> dict[str, float]:
    """Ratios of times, and microseconds per call."""
    layers = Layers(place.device, sizes.multiple)
    x, copies = layers.random(T, n), partial(clock.copies, cold=sizes.cold)
    dense, pairs = copies(lambda: layers.dense(m, n)), copies(lambda: layers.pair(m, n))
    integers = {
        bits: copies(lambda bits=bits: [t for F_ in layers.pair(m, n) for t in sieve_kernels.quantize_rows(F_, bits)])
        for bits in (8, 4)
    }

    # One call per copy of the weights, so that no call finds its weights in a cache.
    quantized = sieve_kernels.lowrank_linear_quantized
    contenders = {
        "dense": [partial(F.linear, x, *W) for W in dense],
        "linear": [partial(sieve_kernels.linear, x, *W) for W in dense],
        "two": [partial(two, x, *pair) for pair in pairs],
        "pair": [partial(sieve_kernels.lowrank_linear, x, *pair) for pair in pairs],
        "pivoted": [partial(sieve_kernels.lowrank_linear_pivoted, x, *P) for P in copies(lambda: layers.pivoted(m, n))],
        "int8": [partial(quantized, x, *pair) for pair in integers[8]],
        "int4": [partial(quantized, x, *pair) for pair in integers[4]],
    }

    # A time counts only for a right result.
    first = {name: calls[0]() for name, calls in contenders.items()}
    check("linear", first["linear"], first["dense"])
    check("lowrank_linear", first["pair"], first["two"])
    check("lowrank_linear_pivoted", first["pivoted"], pivoted(x, *contenders["pivoted"][0].args[1:]))
    for name, bits in (("int8", 8), ("int4", 4)):
        A, a, B, b = integers[bits][0]
        r = layers.pair(m, n)[0].shape[0]
        factors = dequantize_rows(A, a, n, x.dtype), dequantize_rows(B, b, r, x.dtype)
        check(f"lowrank_linear_quantized, {bits} bits", first[name], two(x, *factors))

    # Times, in turns, and the bandwidth measured in the same run.
    taken = clock.cold_seconds(contenders, place.device, sizes.rounds)
    where, size = f"t{T}.{m}x{n}", sum(factor.nbytes for factor in pairs[0])
    bandwidth = ceilings.copied_bytes(place.device, sizes.copied)
    return (
        {f"{ratio}.{where}": taken[ours] / taken[theirs] for ratio, (ours, theirs) in RATIOS.items()}
        | {f"of_bandwidth.{where}": size / taken["pair"] / bandwidth}
        | {f"us.{name}.{where}": 1e6 * value for name, value in taken.items()}
    )


def _head(T: int, sizes: Sizes) -> Job:
    """The output head, which stays dense, through our `linear`."""
    m, n = sizes.head
    where = f"t{T}.{m}x{n}"

    @torch.no_grad()
    def run(place: Place) -> dict[str, float]:
        layers = Layers(place.device, sizes.multiple)
        x, weights = layers.random(T, n), clock.copies(lambda: layers.dense(m, n), sizes.cold)
        works = {
            "dense": [partial(F.linear, x, *W) for W in weights],
            "linear": [partial(sieve_kernels.linear, x, *W) for W in weights],
        }
        check("linear", works["linear"][0](), works["dense"][0]())
        taken = clock.cold_seconds(works, place.device, sizes.rounds)
        ratio = {f"linear_over_dense.{where}": taken["linear"] / taken["dense"]}
        return ratio | {f"us.{name}.{where}": 1e6 * value for name, value in taken.items()}

    return Job(f"few.{where}", (f"linear_over_dense.{where}", f"us.dense.{where}", f"us.linear.{where}"), run)
