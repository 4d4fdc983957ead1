"""Partition and fusion, written out channel by channel; the ramp; options that contradict each other."""

import math

import pytest
import torch

from sieve.compression.masks.config import MaskOptions
from sieve.compression.masks.layerwise_sparsity import layerwise_shifts
from sieve.compression.masks.matrix import MaskedMatrix
from sieve.compression.masks.task_aware import difference, fuse, pooled
from sieve.compression.plan import Plan
from sieve.errors import InputError

GENERAL = [4.0, 1.0, 0.0, 9.0, 0.0]  # H_jj: norms 2, 1, 0, 3, 0
TASK = [4.0, 1.0, 4.0, 0.25, 0.0]  # norms 2, 1, 2, .5, 0
FACTORS = [3.0, 1.0, 0.0, 5.0, 1.0], [2.0, 2.0, 4.0, 1.0, 1.0]  # means of 2


def diagonal(values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def fused(**options):
    factors = tuple(torch.tensor(values, dtype=torch.float64) for values in FACTORS)
    return fuse(diagonal(GENERAL), diagonal(TASK), factors, MaskOptions(task_aware=True, **options)).tolist()


def norms(energies):
    values = [math.sqrt(energy) for energy in energies]
    mean = sum(values) / len(values)
    return [value / mean for value in values]


def test_difference_is_that_of_norms_relative_to_the_layer():
    a, b = norms(GENERAL), norms(TASK)
    expected = [abs(x - y) / (x + y) if x + y else 0.0 for x, y in zip(a, b, strict=True)]
    assert difference(diagonal(GENERAL), diagonal(TASK)).tolist() == pytest.approx(expected)
    assert expected[2] == 1
    assert expected[4] == 0


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_how_loud_a_set_is_does_not_matter(scale):
    louder = diagonal(GENERAL) * scale
    assert torch.allclose(difference(louder, diagonal(TASK)), difference(diagonal(GENERAL), diagonal(TASK)))
    factors = tuple(torch.tensor(values, dtype=torch.float64) for values in FACTORS)
    options = MaskOptions(task_aware=True)
    one = fuse(louder, diagonal(TASK), (factors[0] * scale, factors[1]), options)
    assert torch.allclose(one, fuse(diagonal(GENERAL), diagonal(TASK), factors, options))


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("fusion", ["mean", "max", "min", "geometric"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_shared_channels_are_fused_and_exclusive_ones_belong_to_the_larger_norm(tau, fusion, share):
    operator = {
        "mean": lambda g, t: (1 - share) * g + share * t,
        "max": max,
        "min": min,
        "geometric": lambda g, t: g ** (1 - share) * t**share,
    }[fusion]
    expected = []
    for a, b, g, t in zip(norms(GENERAL), norms(TASK), *FACTORS, strict=True):
        d = abs(a - b) / (a + b) if a + b else 0.0
        g, t = g / 2, t / 2  # relative to their means
        expected.append(operator(g, t) if d <= tau else (t if b > a else g))
    assert fused(tau=tau, fusion=fusion, task_share=share) == pytest.approx(expected)


def test_operators_and_thresholds_differ():
    assert len({tuple(fused(tau=tau, fusion=fusion)) for tau in (0.0, 1.0) for fusion in ("mean", "max", "min")}) == 4


def test_pooled_is_both_sets_with_the_tasks_share_of_tokens():
    generator = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(t, 5, generator=generator, dtype=torch.float64) for t in (30, 90))
    both = torch.cat([X, Y])
    assert torch.allclose(pooled(X.T @ X / 30, Y.T @ Y / 90, 0.75), both.T @ both / 120)


def test_ramp_ranks_traces_linearly_and_leaves_the_mean():
    traces = {"a": 1e-3, "b": 50.0, "c": 0.2, "d": 0.2, "e": 7.0}
    shifts = layerwise_shifts(traces, dict.fromkeys(traces, 100), 0.15)
    assert shifts["a"] < shifts["c"] == shifts["d"] < shifts["e"] < shifts["b"]
    assert shifts["e"] - shifts["c"] == pytest.approx(shifts["b"] - shifts["e"])
    assert sum(shifts.values()) == pytest.approx(0)
    assert max(map(abs, shifts.values())) <= 0.15 + 1e-12
    assert shifts["b"] > 0.1
    assert set(layerwise_shifts(traces, dict.fromkeys(traces, 100), 0.0).values()) == {0.0}
    assert layerwise_shifts({"a": 1.0}, {"a": 5}, 0.1) == {"a": 0.0}


@pytest.mark.parametrize("kept", [0.04, 0.3, 0.5, 0.93])
def test_a_ramped_plan_keeps_as_much_as_a_flat_one(kept):
    sizes = {"a": (50, 1000), "b": (10, 2000), "c": (300, 4000)}
    parameters = {name: m * n for name, (m, n) in sizes.items()}
    shifts = layerwise_shifts({"a": 3.0, "b": 1.0, "c": 2.0}, parameters, 0.2)
    matrices = {
        name: MaskedMatrix(name, m, n, 0, shift=shifts[name], ramp=0.2) for name, (m, n) in sizes.items()
    }  # fmt: skip
    plan = Plan.uniform(matrices.values(), kept)
    assert plan.size(matrices) == pytest.approx(kept * sum(parameters.values()), rel=2e-3 / kept)
    fractions = plan.kept(matrices)
    assert fractions["b"] < fractions["c"] < fractions["a"]
    levels = [Plan.uniform(matrices.values(), step / 50).size(matrices) for step in range(1, 51)]
    assert levels == sorted(levels)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("wanda", {"pattern": "3:4"}, "2:4"),
        ("wanda", {"compare": "block"}, "row"),
        ("wanda", {"fusion": "sum"}, "geometric"),
        ("wanda", {"tau": 1.5}, "tau"),
        ("wanda", {"task_share": 1.0}, "task-share"),
        ("wanda", {"ramp": 1.0}, "ramp"),
        ("sparsegpt", {"damping": 0.0}, "damping"),
        ("wanda", {"pattern": "2:4", "compare": "layer"}, "one row"),
        ("wanda", {"pattern": "4:8", "ramp": 0.1}, "one sparsity"),
        ("magnitude", {"task_aware": True}, "looks at no data"),
        ("magnitude", {"ramp": 0.1}, "looks at no data"),
    ],
)
def test_options_that_cannot_work_are_refused(method, options, words):
    with pytest.raises(InputError, match=words):
        MaskOptions(**options).check(method)
