"""Layers of few rows on this machine's CPU beside torch, at half of the dense layer's parameters, in bfloat16; and what
is done in one call beside the same in several, for any number of rows.

python -m pytest bench/test_few_rows.py --benchmark-only -s

Weights stay in cache between calls where they fit, for both sides alike; where they do not, memory is the limit, and
its speed is printed beside.
"""

import pytest
import torch
import torch.nn.functional as F

from bench.interleaved import compare
from sieve_kernels import (
    linear,
    lowrank_linear,
    lowrank_linear_group,
    lowrank_linear_population,
    lowrank_linear_quantized,
    lowrank_mlp,
    lowrank_swiglu,
    quantize_rows,
    rms_norm,
)
from sieve_kernels.pointwise import reference as pointwise

SHAPES = [(4096, 4096), (14336, 4096), (1536, 576), (576, 1536)]
"""Outputs m and inputs n: Llama-3-8B's and SmolLM2's."""


def pair(m: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of half of the parameters, the rank a multiple of 8."""
    rank = int(0.5 * m * n / (m + n)) // 8 * 8
    return (torch.randn(rank, n) / n**0.5).bfloat16(), (torch.randn(m, rank) / rank**0.5).bfloat16()


def read_speed() -> float:
    """Bytes a second that torch's sum of 256 MB takes from memory, with its threads."""
    numbers = torch.ones(1 << 26)
    return numbers.nbytes / compare(numbers.sum, numbers.sum, 5).ours


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_pair_against_dense(benchmark, m, n, rows, capsys):
    (A, B), W = pair(m, n), torch.randn(m, n).bfloat16()
    x, integers = torch.randn(rows, n).bfloat16(), [*quantize_rows(A, 8), *quantize_rows(B, 8)]

    def ours():
        return lowrank_linear(x, A, B)

    rivals = {
        "F.linear, dense": (ours, lambda: F.linear(x, W)),
        "two F.linear": (ours, lambda: F.linear(F.linear(x, A), B)),
        "F.linear, dense, of our linear": (lambda: linear(x, W), lambda: F.linear(x, W)),
        "lowrank_linear, of 8-bit factors": (lambda: lowrank_linear_quantized(x, *integers), ours),
    }
    results = {name: compare(*both, 21) for name, both in rivals.items()}
    benchmark.extra_info.update({name: result.ratio for name, result in results.items()})
    speed = (A.nbytes + B.nbytes) / next(iter(results.values())).ours
    with capsys.disabled():
        print(f"\n{m} × {n}, {rows} rows: factors read at {speed / 1e9:.1f} GB/s, memory {read_speed() / 1e9:.1f}")
        for name, result in results.items():
            print(f"  / {name}: {result}")
    benchmark(ours)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 8, 128, 2048])
def test_fused_against_separate(benchmark, rows, capsys):
    """SmolLM2's gate and up, its MLP, its q, k and v in one call against several; its norm against torch's steps."""
    x, weight = torch.randn(rows, 576).bfloat16(), torch.rand(576).bfloat16()
    down = pair(576, 1536)
    (A, B), (C, D), (E, G) = pair(1536, 576), pair(1536, 576), pair(192, 576)
    results = {
        "lowrank_swiglu": compare(
            lambda: lowrank_swiglu(x, A, B, C, D),
            lambda: F.silu(lowrank_linear(x, A, B)) * lowrank_linear(x, C, D),
            21,
        ),
        "lowrank_mlp": compare(
            lambda: lowrank_mlp(x, (A, B), (C, D), down),
            lambda: lowrank_linear(lowrank_swiglu(x, A, B, C, D), *down),
            21,
        ),
        "rms_norm": compare(lambda: rms_norm(x, weight), lambda: pointwise.rms_norm(x, weight, 1e-6), 21),
        "lowrank_linear_group": compare(
            lambda: lowrank_linear_group(x, [A, C, E], [B, D, G]),
            lambda: [lowrank_linear(x, *factors) for factors in ((A, B), (C, D), (E, G))],
            21,
        ),
    }
    benchmark.extra_info.update({name: result.ratio for name, result in results.items()})
    with capsys.disabled():
        for name, result in results.items():
            print(f"\n{name} / separate, {rows} rows: {result}", end="")
    benchmark(lowrank_swiglu, x, A, B, C, D)


@torch.inference_mode()
@pytest.mark.parametrize(("candidates", "rows"), [(8, 32), (32, 32), (8, 256)])
def test_population_against_loop(benchmark, candidates, rows, capsys):
    """One call for candidates of a search, each at its rank, against a loop over them."""
    A, B = pair(1536, 576)
    x = torch.randn(candidates, rows, 576).bfloat16()
    ranks = torch.arange(candidates) % 4 * 48 + 48

    def loop():
        return torch.stack([lowrank_linear(x[i], A, B, rank=rank) for i, rank in enumerate(ranks.tolist())])

    result = compare(lambda: lowrank_linear_population(x, A, B, ranks), loop, 21)
    benchmark.extra_info["population / loop"] = result.ratio
    with capsys.disabled():
        print(f"\nlowrank_linear_population / loop, {candidates} candidates of {rows} rows: {result}", end="")
    benchmark(lowrank_linear_population, x, A, B, ranks)
