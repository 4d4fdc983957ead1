"""The driver's promises on the embedded model: calibration against a plain forward, pruned against dense.

python -m pytest bench/test_driver.py --benchmark-only -s
"""

import copy

import pytest
import torch

from bench.interleaved import compare
from sieve.calibration.collect import collect
from sieve.calibration.text import batches, calibration_sequences
from sieve.compression.plan import Plan
from sieve.models.config import EMBEDDED_MODEL
from sieve.models.linears import layer_in, prunable, replace
from sieve.models.loading import load_model
from sieve.nn.formats.pair import Pair
from sieve.nn.fuse import fuse_
from sieve.tasks import load_task

TOKENS = 8192


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def loaded(request):
    return load_model(EMBEDDED_MODEL, request.param, "cpu")


@pytest.fixture(scope="module")
def data(loaded):
    _, tokenizer = loaded
    task = load_task("geography")
    return batches(calibration_sequences(tokenizer, task, task.splits()["calibration"], TOKENS, 8192), 4096)


def test_calibration_against_plain_forward(benchmark, loaded, data, capsys):
    """The whole pass, hooks and Grams included, against the same batches through the same blocks."""
    model, _ = loaded

    @torch.inference_mode()
    def forward():
        for batch in data:
            model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)

    result = compare(lambda: collect(model, data), forward, rounds=3)
    benchmark.extra_info["calibration / forward"] = result.ratio
    with capsys.disabled():
        print(f"\ncalibration / plain forward, {model.dtype}, {TOKENS} tokens: {result}")
    benchmark.pedantic(collect, (model, data), rounds=1)


@pytest.fixture(scope="module")
def pruned(loaded):
    """The model with half of its prunable parameters. Factors are random: a product's time ignores their numbers."""
    dense, _ = loaded
    matrices = prunable(dense)
    plan = Plan.uniform(matrices.values(), 0.5, 8)
    model = copy.deepcopy(dense)
    for name, rank in plan.ranks().items():
        pair = layer_in(Pair(rank), model.get_submodule(name))
        for factor in (pair.A, pair.B):
            torch.nn.init.normal_(factor.weight, std=factor.in_features**-0.5)
        replace(model, name, pair)
    return fuse_(model), 1 - plan.prunable_removed(matrices)


@pytest.mark.parametrize("shape", [(1, 2048), (16, 128)], ids=str)
def test_half_the_parameters_against_dense(benchmark, loaded, pruned, shape, capsys):
    """Logits of 2048 tokens: dense against a model that keeps half of its prunable parameters."""
    (dense, _), (half, kept) = loaded, pruned
    ids = torch.randint(0, 40_000, shape, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def forward(model):
        return model(input_ids=ids, use_cache=False).logits

    result = compare(lambda: forward(dense), lambda: forward(half), rounds=5)
    benchmark.extra_info["dense / pruned"] = result.ratio
    with capsys.disabled():
        print(f"\ndense / pruned ({kept:.2f} kept), {dense.dtype}, {shape[0]} × {shape[1]} tokens: {result}")
    benchmark.pedantic(forward, (half,), rounds=2)
