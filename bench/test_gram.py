"""Gram accumulation on this machine's CPU against torch's plain product, taking turns in one run.

python -m pytest bench/test_gram.py --benchmark-only -s
"""

import pytest
import torch
import torch.nn.functional as F

from bench.interleaved import compare
from sieve_kernels import gram_

SHAPES = [(576, 8192), (1536, 8192), (4096, 2048)]
"""Features n and tokens: what SmolLM2's two input widths and a Llama-3-8B block accumulate."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "tokens"), SHAPES)
def test_against_product(benchmark, n, tokens, dtype, capsys):
    """`gram_` against `C += X.T @ X` in float32, the accumulator's dtype; bfloat16 has to be converted for it."""
    x = torch.randn(tokens, n).to(dtype)
    ours, theirs = torch.zeros(n, n), torch.zeros(n, n)

    def product():
        nonlocal theirs
        wide = x.float()
        theirs += wide.T @ wide

    result = compare(lambda: gram_(ours, x), product)
    benchmark.extra_info["gram_ / product"] = result.ratio
    with capsys.disabled():
        print(f"\ngram_ / (C += X.T @ X), n = {n}, {tokens} tokens, {dtype}: {result}")
    benchmark(gram_, ours, x)


def test_among_other_work(benchmark, capsys):
    """The same between two forward products: an implementation whose threads linger would pay for it here."""
    x, weight = torch.randn(2048, 1536), torch.randn(1536, 1536)
    ours, theirs = torch.zeros(1536, 1536), torch.zeros(1536, 1536)

    def step(accumulate):
        accumulate()
        for _ in range(2):
            F.linear(x, weight)

    def product():
        nonlocal theirs
        theirs += x.T @ x

    result = compare(lambda: step(lambda: gram_(ours, x)), lambda: step(product))
    benchmark.extra_info["step with gram_ / with product"] = result.ratio
    with capsys.disabled():
        print(f"\nstep of one Gram and two forward products, gram_ / product: {result}")
    benchmark(step, lambda: gram_(ours, x))
