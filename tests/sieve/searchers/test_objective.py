"""Sizes by every objective."""

import pytest
import torch

from sieve.compression.low_rank.share_inputs import share_inputs_
from sieve.models.linears import prunable
from sieve.models.matrix import DENSE, Matrix
from sieve.searchers.genome import Genome
from sieve.searchers.objective import measure, measure_together, predicted_seconds, size_of
from tests.tiny_models import tiny_model


def test_bytes_count_what_is_stored():
    plain, pivoted = Matrix("a", 8, 12, 0), Matrix("b", 8, 12, 0, True)
    size = size_of("bytes", torch.bfloat16)
    assert size(plain, 3) == 2 * 3 * 20
    assert size(pivoted, 3) == 2 * 3 * 17 + 8 * 8
    assert size(pivoted, DENSE) == size(plain, DENSE) == 2 * 96


def test_latency_is_read_from_the_table():
    matrix = Matrix("a", 64, 64, 0)
    table = {"64 x 64": [(0, 10.0), (8, 2.0), (16, 4.0), (24, 3.0), (31, 12.0)]}
    size = size_of("latency", torch.float32, table)
    assert size(matrix, DENSE) == 10
    assert size(matrix, 12) == pytest.approx(3)
    assert size(matrix, 24) == 4  # a larger rank that measured faster
    # Kept .25 … .99 are ranks 8, 16, 24, 32: the last would be dense, the third no faster than the second.
    (gene,) = Genome({"a": matrix}, (0.25, 0.5, 0.75, 0.96), 8, size_of=size).genes
    assert gene.levels == ((8,), (24,), (DENSE,))


@pytest.mark.parametrize("pivoted", [False, True])
def test_every_shape_is_measured(pivoted):
    model = tiny_model("llama")
    matrices = prunable(model, pivoted)
    table = measure(model, matrices)
    assert len(table) == len({(matrix.m, matrix.n) for matrix in matrices.values()})
    size = size_of("latency", torch.float32, table)
    assert all(size(matrix, rank) > 0 for matrix in matrices.values() for rank in (DENSE, 1, matrix.max_rank))


def test_predicted_seconds_are_sums_over_all_matrices():
    matrices = {name: Matrix(name, 64, 64, 0) for name in "abc"}
    sizes = size_of("latency", torch.float32, {"64 x 64": [(0, 10.0), (8, 2.0), (16, 4.0)]})
    assert predicted_seconds(sizes, matrices, {"b": 8, "c": DENSE}) == {"dense": 30.0, "pruned": 22.0}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "shared"])
def test_layers_together_take_what_their_own_calls_take(kind, monkeypatch):
    """Each layer that the matrices decide is called once, on rows of its own width."""
    model = tiny_model("llama" if kind == "shared" else kind)
    if kind == "shared":
        share_inputs_(model)
    matrices = prunable(model)
    called = []
    for name in matrices:
        model.get_submodule(name).register_forward_hook(lambda layer, args, out, name=name: called.append(name))

    def medians(works, device, rounds):
        called.clear()
        for work in works.values():
            work()
        return dict.fromkeys(works, 2.5)

    monkeypatch.setattr("sieve.searchers.objective.medians", medians)
    assert measure_together(model, matrices.values()) == 2.5
    assert called == list(matrices)
