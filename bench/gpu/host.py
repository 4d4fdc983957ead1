"""Host time to enqueue a call of one row, over that of two `F.linear` calls: it limits eager decoding."""

import torch
import torch.nn.functional as F

import sieve_kernels
from bench.gpu import clock
from bench.gpu.job import Job, Place
from bench.gpu.layers import Layers, two
from bench.gpu.sizes import Sizes

OPERATORS = (
    "pair",
    "lowrank_linear_pivoted",
    "lowrank_linear_group",
    "lowrank_mlp",
    "lowrank_linear_quantized",
    "linear",
    "rms_norm",
    "rotary",
    "act_mul",
)


def jobs(sizes: Sizes) -> list[Job]:
    """One job for all operators, because they are compared with each other."""
    names = (*OPERATORS, "lowrank_linear")
    cells = [f"host_over_two.{name}" for name in names] + [
        f"us.host.{name}" for name in ("two", "F.linear", *OPERATORS)
    ]
    return [Job("host", tuple(cells), lambda place: measure(place, sizes))]


def measure(place: Place, sizes: Sizes) -> dict[str, float]:
    """Ratios and microseconds. Weights require gradients, as a model's do, and the calls run under `no_grad`."""
    n, layers = sizes.hidden, Layers(place.device, sizes.multiple)
    x, (W,), (A, B) = layers.random(1, n), layers.dense(n, n), layers.pair(n, n)
    P, (As, Bs) = layers.pivoted(n, n), zip(*(layers.pair(m, n) for m in (n, n // 4, n // 4)), strict=True)
    gate, up, down = layers.pair(2 * n, n), layers.pair(2 * n, n), layers.pair(n, 2 * n)
    q, k = (layers.random(1, 1, heads, n // 32).transpose(1, 2) for heads in (32, 8))
    angles, weight = layers.random(1, 1, n // 32), layers.random(n)
    integers = [*sieve_kernels.quantize_rows(A, 8), *sieve_kernels.quantize_rows(B, 8)]
    for tensor in (W, weight, A, B, *P[:2], *As, *Bs, *gate, *up, *down):
        tensor.requires_grad_()

    # The calls, each with tensors that stay the same: only the host's time matters.
    works = {
        "two": lambda: two(x, A, B),
        "F.linear": lambda: F.linear(x, W),
        "pair": lambda: sieve_kernels.lowrank_linear(x, A, B),
        "lowrank_linear_pivoted": lambda: sieve_kernels.lowrank_linear_pivoted(x, *P),
        "lowrank_linear_group": lambda: sieve_kernels.lowrank_linear_group(x, As, Bs),
        "lowrank_mlp": lambda: sieve_kernels.lowrank_mlp(x, gate, up, down),
        "lowrank_linear_quantized": lambda: sieve_kernels.lowrank_linear_quantized(x, *integers),
        "linear": lambda: sieve_kernels.linear(x, W),
        "rms_norm": lambda: sieve_kernels.rms_norm(x, weight),
        "rotary": lambda: sieve_kernels.rotary(q, k, angles, angles),
        "act_mul": lambda: sieve_kernels.act_mul(x, x),
    }

    # Ratios to two library products.
    with torch.no_grad():
        taken = clock.host_seconds(works, place.device, sizes.calls, 2 * sizes.rounds)
    ratios = {f"host_over_two.{name}": taken[name] / taken["two"] for name in OPERATORS}
    worst = max(ratios["host_over_two.pair"], ratios["host_over_two.lowrank_linear_pivoted"])
    absolute = {f"us.host.{name}": 1e6 * value for name, value in taken.items()}
    return {"host_over_two.lowrank_linear": worst} | ratios | absolute
