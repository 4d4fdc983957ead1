"""Operators between the matrices against torch's: norms, rotary positions, act · mul, gathered columns."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import sieve_kernels
from bench.gpu import clock
from bench.gpu.job import Job, Place
from bench.gpu.layers import Layers, check
from bench.gpu.sizes import Sizes
from sieve_kernels.core import dispatch
from sieve_kernels.pointwise import reference

ROWS = (1, 16, 2048)
COPIES = 16
"""Bytes of all copies of the inputs. Inputs of few rows stay in the cache, as in a model that just computed them."""


def jobs(sizes: Sizes) -> list[Job]:
    return [_job(name, T, sizes) for T in ROWS for name in ("rms_norm", "rotary", "act_mul", "gather_columns")]


def _job(name: str, T: int, sizes: Sizes) -> Job:
    cells = f"us.{name}.t{T}", f"us.{name}_torch.t{T}"

    @torch.no_grad()
    def run(place: Place) -> dict[str, float]:
        make, ours, theirs = _contest(name, T, sizes, Layers(place.device, sizes.multiple))
        inputs = [make() for _ in range(COPIES)]
        check(name, ours(*inputs[0]), theirs(*inputs[0]))
        contenders = {kind: [partial(one, *x) for x in inputs] for kind, one in (("ours", ours), ("torch", theirs))}
        taken = clock.cold_seconds(contenders, place.device, sizes.rounds)
        return dict(zip(cells, (1e6 * taken["ours"], 1e6 * taken["torch"]), strict=True))

    return Job(f"pointwise.{name}.t{T}", cells, run)


def _contest(
    name: str, T: int, sizes: Sizes, layers: Layers
) -> tuple[Callable[[], Sequence[Tensor]], Callable, Callable]:
    """(what makes the inputs, our function of them, torch's function of them)."""
    n, (_, m) = sizes.hidden, sizes.mlp
    if name == "rms_norm":
        weight = layers.random(1, n)[0]
        return (
            lambda: (layers.random(T, n),),
            lambda x: sieve_kernels.rms_norm(x, weight, 1e-6),
            lambda x: reference.rms_norm(x, weight, 1e-6),
        )
    if name == "rotary":
        q, k = ((1, T, heads, n // 32) for heads in (32, 8))
        angles = layers.random(T, n // 32)[None]
        return (
            lambda: [layers.random(T, shape[2] * shape[3]).view(shape).transpose(1, 2) for shape in (q, k)],
            lambda q, k: sieve_kernels.rotary(q, k, angles, angles),
            lambda q, k: reference.rotary(q, k, angles, angles),
        )
    if name == "act_mul":
        return (
            lambda: (layers.random(T, m), layers.random(T, m)),
            lambda gate, up: sieve_kernels.act_mul(gate, up, "silu"),
            lambda gate, up: reference.act_mul(gate, up, "silu"),
        )

    # gather_columns, with the index of a pivoted pair: the pivots ascend, and so do the other columns.
    order = torch.randperm(m, device=layers.device)
    inverse = torch.argsort(torch.cat([order[: m // 8].sort().values, order[m // 8 :].sort().values]))
    return (
        lambda: (layers.random(T, m),),
        lambda x: dispatch.implementation("gather_columns", x)(x, inverse),
        lambda x: x.index_select(1, inverse),
    )
