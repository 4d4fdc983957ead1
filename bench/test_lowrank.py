"""Low-rank layers on this machine's CPU against the dense layer and against two calls, taking turns in one run.

python -m pytest bench/test_lowrank.py --benchmark-only -s
"""

import pytest
import torch
import torch.nn.functional as F

from bench.interleaved import compare
from sieve_kernels import lowrank_linear

SHAPES = [(576, 576), (576, 1536), (4096, 14336)]
"""Inputs n and outputs m: SmolLM2's query and gate, and the gate of Llama-3-8B."""


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 512])
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_half_the_parameters(benchmark, n, m, rows, capsys):
    """y = (x Aᵀ) Bᵀ in bfloat16 at half of the dense layer's parameters."""
    rank = n * m // (2 * (n + m))
    x, W, A, B = (torch.randn(s, dtype=torch.bfloat16) for s in ((rows, n), (m, n), (rank, n), (m, rank)))

    def ours():
        return lowrank_linear(x, A, B)

    lines = {
        "dense": compare(ours, lambda: F.linear(x, W)),
        "two calls": compare(ours, lambda: F.linear(F.linear(x, A), B)),
    }
    with capsys.disabled():
        for name, result in lines.items():
            benchmark.extra_info[f"ours / {name}"] = result.ratio
            print(f"\nlowrank_linear / {name}, {n} → {rank} → {m}, {rows} rows: {result}", end="")
    benchmark(ours)
