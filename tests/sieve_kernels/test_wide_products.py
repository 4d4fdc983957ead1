"""Products in float32 where a processor has no 16-bit ones; here on any processor."""

import platform

import pytest
import torch
from operators import LAYERS, OPERATORS

from sieve_kernels.core import wide_products as module
from sieve_kernels.core.wide_products import multiplies_slowly, wide_products

SERVED = [name for name in [*LAYERS, "lowrank_linear_population"] if "torch" in OPERATORS[name].implementations]


@pytest.fixture
def slow(monkeypatch):
    """A processor without 16-bit products."""
    monkeypatch.setattr(module, "multiplies_slowly", lambda dtype: dtype.itemsize == 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SERVED)
def test_values_and_gradients_are_as_accurate(name, dtype, slow, monkeypatch):
    monkeypatch.setenv("SIEVE_KERNELS", "torch")
    operator = OPERATORS[name]
    operator.check(*operator.make((70,), 48, 40, 12, dtype, "cpu"))


@pytest.mark.parametrize("numbers", [1, 400, 2000])
def test_a_weight_is_converted_in_parts(numbers, slow, monkeypatch):
    """Parts of one row, of 10 rows, of which the last has 8, and all of it."""
    monkeypatch.setenv("SIEVE_KERNELS", "torch")
    monkeypatch.setattr(module, "PART", numbers)
    operator = OPERATORS["linear"]
    tensors = operator.make((70,), 48, 40, 12, torch.bfloat16, "cpu")
    operator.check(*tensors)
    exact = operator.definition(*operator.wide(tensors))
    assert (operator.ours(*tensors) != exact.bfloat16()).float().mean() < 0.01


def test_a_result_is_rounded_once(slow, monkeypatch):
    """Where an intermediate is not rounded, the result is the exact one, rounded."""
    monkeypatch.setenv("SIEVE_KERNELS", "torch")
    operator = OPERATORS["lowrank_linear"]
    tensors = operator.without_bias(operator.make((70,), 48, 40, 12, torch.bfloat16, "cpu"))
    exact = operator.definition(*operator.wide(tensors))
    assert (operator.ours(*tensors) != exact.bfloat16()).float().mean() < 0.01
    monkeypatch.setattr(module, "multiplies_slowly", lambda dtype: False)
    assert (operator.ours(*tensors) != exact.bfloat16()).float().mean() > 0.05


def test_tensors_of_the_first_ones_dtype_are_converted_there_and_back(slow):
    given = {}

    @wide_products
    def function(x, ranks, scale, factors, needed):
        given.update(x=x, ranks=ranks, scale=scale, factors=factors, needed=needed)
        return [x, scale, *factors]

    x, ranks, scale = torch.ones(2, dtype=torch.float16), torch.ones(2, dtype=torch.int64), torch.ones(2).double()
    found = function(x, ranks, scale, [x, None], [True, False])
    assert [one if one is None else one.dtype for one in found] == [torch.float16, torch.float64, torch.float16, None]
    assert given["x"].dtype is given["factors"][0].dtype is torch.float32
    assert given["ranks"] is ranks
    assert given["scale"] is scale
    assert given["needed"] == [True, False]
    assert function(ranks, x, scale, [], [])[0] is ranks


def test_only_known_processors_are_slow(monkeypatch):
    assert not multiplies_slowly(torch.float32)
    multiplies_slowly.cache_clear()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not multiplies_slowly(torch.bfloat16)
    multiplies_slowly.cache_clear()
