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


@pytest.mark.parametrize(("n", "tokens"), SHAPES)
def test_against_products(benchmark, n, tokens, capsys):
    """`gram_` against the two ways to say it in torch, all in float32."""
    x = torch.randn(tokens, n)
    ours, theirs = torch.zeros(n, n), torch.zeros(n, n)

    def product():
        nonlocal theirs
        theirs += x.T @ x

    for name, other in (("C += X.T @ X", product), ("C.addmm_(X.T, X)", lambda: theirs.addmm_(x.T, x))):
        result = compare(lambda: gram_(ours, x), other)
        benchmark.extra_info[f"gram_ / {name}"] = result.ratio
        with capsys.disabled():
            print(f"\ngram_ / ({name}), n = {n}, {tokens} tokens, float32: {result}")
    benchmark(gram_, ours, x)


@pytest.mark.parametrize(("n", "tokens"), SHAPES)
def test_bfloat16_input(benchmark, n, tokens, capsys):
    """bfloat16 tokens, which a library product would have to convert first, against float32 ones."""
    x = torch.randn(tokens, n)
    ours, narrow = torch.zeros(n, n), x.bfloat16()
    result = compare(lambda: gram_(ours, narrow), lambda: gram_(ours, x))
    benchmark.extra_info["bfloat16 / float32"] = result.ratio
    with capsys.disabled():
        print(f"\ngram_ of bfloat16 / of float32, n = {n}, {tokens} tokens: {result}")
    benchmark(gram_, ours, narrow)


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
