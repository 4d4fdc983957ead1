"""Gradients against derivatives taken one matrix and rank at a time; fitting; allocation against brute force."""

import itertools

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from sieve.models.matrix import Matrix
from sieve.searchers.algorithms.allocate import allocate
from sieve.searchers.genome import Genome
from sieve.searchers.sensitivity import sensitivity
from sieve.searchers.surrogate import Surrogate, rank_correlation
from tests.sieve.evaluation.test_scoring import choice_examples, choice_task
from tests.sieve.searchers.engine.test_engine import svd_factors
from tests.tiny_models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def derivative(model, name, pair, rank, example):
    """Of one example's loss along W → W + α (B_r A_r - W), at α = 0."""
    ids = torch.tensor([TOKENIZER.encode(example.prompt + example.target)])
    start = len(TOKENIZER.encode(example.prompt))
    module = model.get_submodule(name)
    W = module.weight.detach()
    cut = pair.B[:, :rank] @ pair.A[:rank]
    alpha = torch.zeros((), requires_grad=True)
    direction = (cut.T if isinstance(module, Conv1D) else cut) - W
    logits = torch.func.functional_call(model, {f"{name}.weight": W + alpha * direction}, (ids,)).logits
    logprobs = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[start - 1 :]
    return torch.autograd.grad(-logprobs.sum(), alpha)[0].item()


@pytest.mark.parametrize(("name", "frozen"), [("llama", False), ("gpt2", True)])
def test_is_half_the_mean_square_of_each_example_s_derivative(name, frozen):
    model = tiny_model(name).requires_grad_(not frozen)
    factors, examples = svd_factors(model), choice_examples(7)
    curves, tokens = sensitivity(model, TOKENIZER, factors, choice_task(), examples)
    assert tokens == sum(len(example.prompt + example.target) for example in examples)
    for matrix in list(factors)[1::3]:
        pair = factors[matrix]
        assert curves[matrix].shape == (pair.max_rank + 1,)
        for rank in (0, 1, pair.max_rank // 2, pair.max_rank):
            slopes = [derivative(model, matrix, pair, rank, example) for example in examples]
            assert curves[matrix][rank] == pytest.approx(np.mean(np.square(slopes)) / 2, rel=1e-3, abs=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


def small_genome(genes=4):
    return Genome({f"w{i}": Matrix(f"w{i}", 64, 64 + 16 * i, i) for i in range(genes)}, (0.25, 0.5, 0.75), 4)


def curves_of(genome, seed=0):
    draw = np.random.default_rng(seed)
    return {name: draw.uniform(0.1, 1) * np.linspace(1, 0, 80) ** 2 for gene in genome.genes for name in gene.names}


def test_weights_are_found_again():
    genome = small_genome(6)
    surrogate = Surrogate(genome, curves_of(genome))
    truth = 3 * np.array([0.5, 1.5, 1, 1, 0.7, 1.3])
    draw = np.random.default_rng(0)
    candidates = [draw.integers(genome.bounds) for _ in range(60)]
    losses = [float(truth @ surrogate._features(levels)) for levels in candidates]
    before = rank_correlation([surrogate.loss(levels) for levels in candidates], losses)
    surrogate.fit(candidates[:40], losses[:40])
    after = [surrogate.loss(levels) for levels in candidates[40:]]
    assert after == pytest.approx(losses[40:], rel=0.1)
    assert rank_correlation(after, losses[40:]) > max(before, 0.98)
    assert surrogate.loss(genome.dense) == 0


def test_few_or_useless_evaluations_do_no_harm():
    genome = small_genome()
    surrogate = Surrogate(genome, curves_of(genome))
    surrogate.fit([genome.dense], [0.1])
    assert (surrogate.weights == 1).all()
    surrogate.fit([genome.dense * 0], [-5.0])
    assert (surrogate.weights == 1).all()
    surrogate.fit([genome.dense * 0], [5.0])
    assert (surrogate.weights > 0).all()


def test_predictions_fall_with_the_level():
    genome = small_genome()
    curves = {name: curve + 0.1 * np.sin(np.arange(80)) for name, curve in curves_of(genome).items()}
    for table in Surrogate(genome, curves).tables:
        assert (np.diff(table) <= 0).all()
        assert table[-1] == 0


@pytest.mark.parametrize("seed", range(5))
def test_allocation_is_the_best_of_its_size(seed):
    genome = small_genome(4)
    surrogate = Surrogate(genome, curves_of(genome, seed))
    every = [np.array(levels) for levels in itertools.product(*map(range, genome.bounds))]
    for share in (0.9, 0.7, 0.5):
        levels = allocate(genome, surrogate, int(share * genome.size(genome.dense)))
        size = genome.size(levels)
        assert size <= share * genome.size(genome.dense)
        best = min(surrogate.loss(other) for other in every if genome.size(other) <= size)
        assert surrogate.loss(levels) == pytest.approx(best)


def test_allocation_of_the_impossible_is_the_smallest():
    genome = small_genome()
    levels = allocate(genome, Surrogate(genome, curves_of(genome)), 0)
    assert (levels == 0).all()


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
