"""Query, key and value in one call, and a gated MLP in one call, against the fastest library products."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sieve_kernels
from bench.gpu import clock
from bench.gpu.job import Job, Place
from bench.gpu.layers import Layers, check, two
from bench.gpu.sizes import Sizes

LIBRARY = ("separate", "concatenated")


def jobs(sizes: Sizes) -> list[Job]:
    return [job for T in sizes.group_rows for job in (_job("group", _group, T, sizes), _job("mlp", _mlp, T, sizes))]


def _job(kind: str, make, T: int, sizes: Sizes) -> Job:
    names = [f"us.{kind}.{way}.t{T}" for way in ("ours", *LIBRARY)]

    @torch.no_grad()
    def run(place: Place) -> dict[str, float]:
        contenders = make(Layers(place.device, sizes.multiple), T, sizes)
        ours, *others = (calls[0]() for calls in contenders.values())
        for other in others:
            check(f"lowrank_{kind}", ours, other)
        taken = clock.cold_seconds(contenders, place.device, sizes.rounds)
        best = min(taken[way] for way in LIBRARY)
        absolute = {f"us.{kind}.{way}.t{T}": 1e6 * value for way, value in taken.items()}
        return {f"{kind}_over_best.t{T}": taken["ours"] / best} | absolute

    return Job(f"{kind}.t{T}", (f"{kind}_over_best.t{T}", *names), run)


def _group(layers: Layers, T: int, sizes: Sizes) -> dict[str, list[clock.Work]]:
    n, ms = sizes.group
    x = layers.random(T, n)
    sets = clock.copies(lambda: [t for m in ms for t in layers.pair(m, n)], sizes.cold, 2 * T * (n + sum(ms)))
    groups = [(factors[::2], factors[1::2]) for factors in sets]
    joined = [(torch.cat(As), Bs) for As, Bs in groups]
    return {
        "ours": [partial(sieve_kernels.lowrank_linear_group, x, As, Bs) for As, Bs in groups],
        "separate": [lambda As=As, Bs=Bs: [two(x, *pair) for pair in zip(As, Bs, strict=True)] for As, Bs in groups],
        "concatenated": [partial(_from_joined, x, A, Bs) for A, Bs in joined],
    }


def _from_joined(x: Tensor, A: Tensor, Bs: list[Tensor]) -> list[Tensor]:
    """One product with all first factors concatenated, then one product per second factor."""
    zs = F.linear(x, A).split([B.shape[1] for B in Bs], -1)
    return [F.linear(z, B) for z, B in zip(zs, Bs, strict=True)]


def _mlp(layers: Layers, T: int, sizes: Sizes) -> dict[str, list[clock.Work]]:
    n, m = sizes.mlp
    x = layers.random(T, n)

    def make() -> list[Tensor]:
        return [*layers.pair(m, n), *layers.pair(m, n), *layers.pair(n, m)]

    sets = [(t[:2], t[2:4], t[4:]) for t in clock.copies(make, sizes.cold, 2 * T * (2 * n + 3 * m))]
    joined = [(torch.cat([gate[0], up[0]]), [gate[1], up[1]], down) for gate, up, down in sets]

    def separate(gate, up, down) -> Tensor:
        return two(F.silu(two(x, *gate)).mul_(two(x, *up)), *down)

    def concatenated(A, Bs, down) -> Tensor:
        gate, up = _from_joined(x, A, Bs)
        return two(F.silu(gate).mul_(up), *down)

    return {
        "ours": [partial(sieve_kernels.lowrank_mlp, x, *layers_) for layers_ in sets],
        "separate": [partial(separate, *layers_) for layers_ in sets],
        "concatenated": [partial(concatenated, *layers_) for layers_ in joined],
    }
