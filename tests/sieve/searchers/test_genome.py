"""Genes and levels: what they stand for, and that sizes are those of the plans."""

import numpy as np
import pytest

from sieve.errors import InputError
from sieve.models.matrix import DENSE, Matrix
from sieve.searchers.genome import LEVELS, PAPER_LEVELS, Genome


def llama(blocks=2, pivoted=False):
    shapes = {"q_proj": (64, 64), "k_proj": (16, 64), "v_proj": (16, 64), "o_proj": (64, 64), "gate_proj": (160, 64),
              "up_proj": (160, 64), "down_proj": (64, 160)}  # fmt: skip
    names = [(f"layers.{block}.{name}", *shape, block) for block in range(blocks) for name, shape in shapes.items()]
    return {name: Matrix(name, m, n, block, pivoted) for name, m, n, block in reversed(names)}


@pytest.mark.parametrize(("granularity", "genes"), [("matrix", 14), ("group", 8), ("block", 2)])
def test_granularity(granularity, genes):
    genome = Genome(llama(), granularity=granularity)
    assert len(genome) == genes
    assert sorted(name for gene in genome.genes for name in gene.names) == sorted(llama())
    assert list(genome.blocks) == sorted(genome.blocks)


@pytest.mark.parametrize("pivoted", [False, True])
@pytest.mark.parametrize("kept", [LEVELS, PAPER_LEVELS])
@pytest.mark.parametrize("granularity", ["matrix", "group", "block"])
def test_sizes_are_those_of_the_plan_and_grow_with_the_level(pivoted, kept, granularity):
    matrices = llama(pivoted=pivoted)
    genome = Genome(matrices, kept, 4, granularity)
    draw = np.random.default_rng(0)
    for _ in range(20):
        levels = draw.integers(genome.bounds)
        plan = genome.plan(levels)
        plan.check(matrices)
        assert plan.pivoted == pivoted
        assert genome.size(levels) == plan.size(matrices)
        assert (genome.nearest(plan) == levels).all()
    for gene in range(len(genome)):
        sizes = []
        for level in range(genome.bounds[gene]):
            levels = genome.dense.copy()
            levels[gene] = level
            sizes.append(genome.size(levels))
        assert sizes == sorted(set(sizes))


def test_levels_are_rounded_up_without_duplicates_and_dense_where_no_smaller():
    matrix = Matrix("w", 64, 64, 0)  # break-even below rank 32
    (gene,) = Genome({"w": matrix}, (0.01, 0.1, 0.2, 0.26, 0.5, 0.99, 1.0), multiple=8).genes
    assert gene.levels == ((8,), (16,), (DENSE,))
    assert Genome({"w": matrix}, (0.5,), 8).genes[0].levels == ((16,), (DENSE,))


def test_dense_prunes_nothing():
    genome = Genome(llama())
    assert genome.plan(genome.dense) == {}


def test_nothing_to_choose():
    with pytest.raises(InputError, match="--objective"):
        Genome(llama(), multiple=64)


def test_unknown_granularity():
    with pytest.raises(InputError, match="matrix, group, block"):
        Genome(llama(), granularity="head")
