"""Widths of MLPs: the closed form, the model that a search runs, what is stored, and what becomes of it later."""

import copy
from dataclasses import replace

import pytest
import torch

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.gradients import answer_loss
from sieve.calibration.text import Batch
from sieve.checkpoint.multiply_out import multiply_out_
from sieve.checkpoint.size import model_parameters
from sieve.compression.low_rank.expand import expand_
from sieve.compression.low_rank.problem import Problem, problem_of
from sieve.compression.structured.channel_pair import RIDGE, channel_pair, refitted_channels
from sieve.errors import InputError
from sieve.models.linears import weight_of
from sieve.models.mlp_width import MlpWidth
from sieve.models.prunable_model import PrunableModel
from sieve.nn.narrow import NarrowLinear
from tests.tiny_models import tiny_model, tiny_tokenizer, tiny_tokens

FAMILIES = ["llama", "phi3", "gpt2", "opt", "gpt_neox"]


def data(rows: int = 8) -> list[Batch]:
    ids = tiny_tokens(rows, 16)
    return [Batch(ids, torch.ones_like(ids), torch.full((rows,), 12))]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """A tiny model, its factors by the method, and a plan of widths and ranks."""
    from tests.sieve.conftest import ROWS, TASK, write_task

    task = write_task(tmp_path_factory.mktemp("task") / "legs.yaml", TASK, ROWS)
    model = tiny_model(request.param)
    statistics = sieve.calibrate(model, tiny_tokenizer(), task, tokens=1024, method="widths")
    factors = sieve.project(model, statistics, method="widths", pivot=True)
    matrices = factors.matrices(model)
    plan = sieve.Plan({name: matrix.rank_at(0.6, 4) for name, matrix in matrices.items()}, pivoted=True)
    return model, statistics, factors, plan


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(tiny_tokens()).logits


def random_problem(m: int = 5, n: int = 9, rank: int = 9) -> Problem:
    generator = torch.Generator().manual_seed(0)
    W, X = (torch.randn(rows, n, generator=generator, dtype=torch.float64) for rows in (m, 40))
    X[:, rank:] = X[:, : n - rank]
    return Problem(W, X.T @ X, "input", len(X))


@pytest.mark.parametrize("rank", [9, 6])
def test_every_width_is_the_least_squares_solution_for_its_channels(rank):
    problem = random_problem(rank=rank)
    importance = torch.tensor([3.0, 9, 1, 4, 0, 7, 2, 8, 5])
    pair = channel_pair(problem, importance, (), 9)
    size = RIDGE * problem.gram.diagonal().mean()
    # Rows of data and, for the ridge, of the identity.
    root = torch.linalg.cholesky(problem.gram + size * torch.eye(9, dtype=torch.float64)).T
    for width in range(1, 10):
        channels, matrix = pair.weight(width)
        assert channels.tolist() == sorted(importance.argsort(descending=True)[:width].tolist())
        expected = torch.linalg.lstsq(root[:, channels], root @ problem.W.T).solution.T
        torch.testing.assert_close(matrix.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_energy_lost_is_that_of_the_error():
    problem = random_problem()
    pair = channel_pair(problem, torch.arange(9.0), (), 9)
    ridge = RIDGE * problem.gram.diagonal().mean() * torch.eye(9, dtype=torch.float64)
    for width in (2, 5, 8):
        channels, matrix = pair.weight(width)
        error = problem.W.clone()
        error[:, channels] -= matrix.double()
        lost = torch.trace(error @ (problem.gram + ridge) @ error.T)
        assert float(pair.energy[width:].sum()) == pytest.approx(float(lost), rel=1e-4)


def test_refitted_channels_are_the_least_squares_solution_for_other_inputs():
    problem = random_problem()
    pair = channel_pair(problem, torch.arange(9.0), (), 9)
    generator = torch.Generator().manual_seed(1)
    dense, pruned = (torch.randn(40, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    gram, cross = pruned.T @ pruned, dense.T @ pruned
    channels, matrix = refitted_channels(pair, problem.W, gram, cross, 4).weight(4)
    # The ridge is rows that ask for W itself.
    rows = (RIDGE * gram.diagonal().mean()).sqrt() * torch.eye(9, dtype=torch.float64)
    inputs, targets = torch.cat([pruned, rows])[:, channels], torch.cat([dense, rows]) @ problem.W.T
    expected = torch.linalg.lstsq(inputs, targets).solution.T
    torch.testing.assert_close(matrix.double(), expected, rtol=1e-4, atol=1e-5)


def test_importance_is_the_squared_change_of_the_loss_by_channel():
    model = tiny_model("llama")
    name = "model.layers.1.mlp.down_proj"
    statistics = collect(model, data(), gradients=True, channels=[name])
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda layer, args: seen.append(args[0].requires_grad_()) or seen[-1].retain_grad()
    )
    answer_loss(model, data()[0]).backward()
    handle.remove()
    expected = (seen[0] * seen[0].grad).square().flatten(0, 1).sum(0)
    torch.testing.assert_close(statistics.importance[name], expected.detach(), rtol=1e-3, atol=1e-9)


def test_the_searched_model_and_the_stored_one_are_one_map(made):
    model, _, factors, plan = made
    with factors.elastic(model) as elastic:
        elastic.set_plan({})
        torch.testing.assert_close(logits(model), logits(made[0]))
        elastic.set_plan(plan)
        searched = logits(model)
        # Of several candidates at a time each is the same.
        elastic.set_batch([plan, {}])
        ids = tiny_tokens()
        with torch.inference_mode():
            both = model(torch.cat([ids, ids])).logits
        torch.testing.assert_close(both[: len(ids)], searched, rtol=1e-3, atol=1e-3)
    with factors.stored(model, plan):
        stored = logits(model)
    torch.testing.assert_close(searched, stored, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(module, NarrowLinear) for module in model.modules())


def test_a_pruned_model_has_the_size_of_its_plan_and_survives_all_that_follows(made, tmp_path):
    dense, _, factors, plan = made
    model = copy.deepcopy(dense)
    matrices = factors.matrices(model)
    widths = [name for name, matrix in matrices.items() if isinstance(matrix, MlpWidth)]
    assert len(widths) == len(PrunableModel(model).blocks)
    sieve.apply_(model, factors, plan)
    removed = sum(matrix.parameters for matrix in matrices.values()) - plan.size(matrices)
    biases = sum(
        layer.bias.numel() - model.get_submodule(name).bias.numel()
        for matrix in (matrices[name] for name in widths)
        for name in matrix.names
        if (layer := dense.get_submodule(name)).bias is not None
    )
    assert model_parameters(dense) - model_parameters(model) == removed + biases
    before = logits(model)
    # Saved and loaded.
    sieve.save(model, tiny_tokenizer(), tmp_path / "pruned")
    loaded, _ = sieve.load(tmp_path / "pruned")
    torch.testing.assert_close(logits(loaded), before, rtol=0, atol=0)
    # Pruned once more: as wide as at first, and the same map.
    again = copy.deepcopy(loaded)
    ranks = expand_(again)
    assert {name: ranks[name] for name in widths} == {name: plan[name] for name in widths}
    assert set(PrunableModel(again).matrices(widths=True)) == set(matrices)
    torch.testing.assert_close(logits(again), before, rtol=1e-3, atol=1e-3)
    # As a plain model of the architecture, where that has a place for the biases.
    if dense.config.model_type != "llama":
        return
    plain = multiply_out_(copy.deepcopy(loaded))
    assert model_parameters(plain) == model_parameters(dense)
    torch.testing.assert_close(logits(plain), before, rtol=1e-3, atol=1e-3)


def test_a_bias_that_the_architecture_has_not_is_stored(made, tmp_path):
    """Where widths are fitted about means, the last matrix of an MLP has one."""
    dense, statistics, _, plan = made
    factors = sieve.project(dense, statistics, method="widths", pivot=True, mean=True)
    model = sieve.apply_(copy.deepcopy(dense), factors, plan)
    widths = [name for name, matrix in factors.matrices(dense).items() if isinstance(matrix, MlpWidth)]
    assert all(model.get_submodule(name).bias is not None for name in widths)
    sieve.save(model, tiny_tokenizer(), tmp_path / "pruned")
    loaded, _ = sieve.load(tmp_path / "pruned")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_only_mlps_that_have_lost_channels_are_widened(made):
    dense, _, factors, plan = made
    widths = [name for name, matrix in factors.matrices(dense).items() if isinstance(matrix, MlpWidth)]
    model = sieve.apply_(copy.deepcopy(dense), factors, {widths[0]: plan[widths[0]]})
    assert expand_(model) == {widths[0]: plan[widths[0]]}


def test_all_channels_are_the_dense_layer(made):
    model, statistics, factors, _ = made
    for name, matrix in factors.matrices(model).items():
        if isinstance(matrix, MlpWidth):
            weight = weight_of(model.get_submodule(name))
            problem = problem_of(name, weight, statistics)
            pair = channel_pair(problem, statistics.importance[name], factors[name].writers, matrix.n)
            torch.testing.assert_close(pair.weight(matrix.n)[1], weight, rtol=1e-3, atol=1e-3)
            # A model that has lost channels has lost one at least.
            assert factors[name].max_rank == matrix.n - 1


def test_a_refit_lowers_the_error_of_what_leaves_the_blocks(made):
    dense, statistics, factors, plan = made
    wanted = logits(dense)
    errors = []
    for chosen in (factors, sieve.refit(dense, factors, plan, statistics)):
        model = sieve.apply_(copy.deepcopy(dense), chosen, plan)
        errors.append(float((logits(model) - wanted).square().mean()))
    assert errors[1] < 1.5 * errors[0]


def test_what_cannot_be_is_refused(made):
    model, _, factors, _ = made
    name = next(name for name, matrix in factors.matrices(model).items() if isinstance(matrix, MlpWidth))
    n = factors.matrices(model)[name].n
    with pytest.raises(InputError, match=f"whole number in 1…{n}"):
        sieve.apply_(model, factors, {name: n + 1})
    writer = factors.matrices(model)[name].writers[0][0]
    with pytest.raises(InputError, match="which is not a prunable matrix"):
        sieve.apply_(model, factors, {writer: 4})
    statistics = replace(collect(PrunableModel(model), data(), gradients=True), held_back=[1])
    with pytest.raises(InputError, match="importance of channels"):
        sieve.project(model, statistics, method="widths")
