"""Refitting a plan: the closed form against regression on the data themselves, and what it does to whole models."""

import math
from importlib import import_module

import pytest
import torch

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.gradients import column_basis
from sieve.calibration.text import Sample, batches
from sieve.compression.low_rank.output_aligned import output_aligned
from sieve.compression.low_rank.paired_states import PairedStates
from sieve.compression.low_rank.refit import held_back_error, refitted
from sieve.compression.plan import Plan
from sieve.errors import InputError, NumericsError
from sieve.models.decoder import decoder_blocks
from sieve.models.linears import prunable, weight_of
from tests.sieve.compression.low_rank.test_loss_aware import root
from tests.sieve.compression.low_rank.test_output_aligned import SHAPES, data
from tests.tiny_models import TINY, tiny_model, tiny_tokens

LENGTHS = (40, 7, 22, 40, 3, 31)
SEQUENCES = [Sample(row[:n].tolist(), n - 1) for row, n in zip(tiny_tokens(6, 40), LENGTHS, strict=True)]


def problem(m: int, n: int, tokens: int = 150):
    """W, the dense model's inputs X and the pruned one's: less of some directions, more of others."""
    W, X = data(m, n, tokens)
    generator = torch.Generator().manual_seed(3)
    mixing = torch.eye(n, dtype=torch.float64) + 0.15 * torch.randn(n, n, generator=generator, dtype=torch.float64)
    noise = 0.05 * torch.randn(n, tokens, generator=generator, dtype=torch.float64)
    G = torch.randn(m, 2 * m, generator=generator, dtype=torch.float64)
    return W, X, mixing @ X + noise, G @ G.T


def solve(W, X, given, G=None, loss_ridge=math.inf, ridge=0.05):
    gradient = torch.zeros(1, 1, dtype=torch.float64)
    if G is not None:
        Q = column_basis(W)[0] if W.shape[0] > W.shape[1] else torch.eye(len(W), dtype=torch.float64)
        gradient = Q.T @ G @ Q
    return refitted(W, given @ given.T, X @ given.T, gradient, loss_ridge, ridge, X.shape[1]), gradient


@pytest.mark.parametrize("loss_ridge", [math.inf, 0.3])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_is_the_reduced_rank_regression_of_the_dense_outputs(m, n, loss_ridge):
    """By least squares on the data with √λ I appended, its outputs cut by an SVD: nothing of the form is used."""
    W, X, given, G = problem(m, n)
    (A, B, energy), gradient = solve(W, X, given, G, loss_ridge)
    eye = torch.eye(n, dtype=torch.float64)
    size = math.sqrt(0.05 * float((given**2).sum()) / n)
    inputs = torch.cat([given, size * eye], dim=1)
    targets = torch.cat([W @ X, size * W], dim=1)
    best = torch.linalg.lstsq(inputs.T, targets.T).solution.T
    half = inverse = torch.eye(m, dtype=torch.float64)
    if math.isfinite(loss_ridge):
        H = G / gradient.diagonal().mean() + loss_ridge * torch.eye(m, dtype=torch.float64)
        half, inverse = root(H, 0.5), root(H, -0.5)
    U, singular, _ = torch.linalg.svd(half @ best @ given, full_matrices=False)
    for rank in (1, 5, 11, min(m, n)):
        expected = inverse @ U[:, :rank] @ U[:, :rank].T @ half @ best
        assert torch.allclose(B[:, :rank] @ A[:rank], expected, atol=1e-7)
        assert float(energy[rank:].sum()) == pytest.approx(float((singular[rank:] ** 2).sum()), abs=1e-6)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_beats_the_pair_that_knows_only_the_dense_inputs(m, n):
    """On the inputs that the pruned model has, with hardly a ridge, at every rank."""
    W, X, given, _ = problem(m, n)
    (A, B, _), _ = solve(W, X, given, ridge=1e-6)
    dense = output_aligned(W, X @ X.T, "input", X.shape[1])
    for rank in range(1, min(m, n) + 1):
        ours = ((W @ X - B[:, :rank] @ (A[:rank] @ given)) ** 2).sum()
        theirs = ((W @ X - dense[1][:, :rank] @ (dense[0][:rank] @ given)) ** 2).sum()
        assert ours < theirs


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_limits(m, n):
    """The same inputs: nothing to compensate. A large ridge: W itself, at the inputs as they are. Few tokens: still W
    where they show nothing."""
    W, X, given, _ = problem(m, n)
    (A, B, _), _ = solve(W, X, X, ridge=1e-9)
    expected = output_aligned(W, X @ X.T, "input", X.shape[1])
    assert torch.allclose(B[:, :5] @ A[:5], expected[1][:, :5] @ expected[0][:5], atol=1e-4)
    (A, B, _), _ = solve(W, X, given, ridge=1e9)
    expected = output_aligned(W, given @ given.T, "input", given.shape[1])
    assert torch.allclose(B[:, :5] @ A[:5], expected[1][:, :5] @ expected[0][:5], atol=1e-5)
    (A, B, _), _ = solve(W, X[:, :2], given[:, :2], ridge=1e-3)
    assert torch.isfinite(A).all()
    unseen = torch.linalg.svd(given[:, :2])[0][:, 2:]  # directions of inputs without data
    assert torch.allclose(B @ A @ unseen, W @ unseen, atol=1e-6)


def state(model, plan=None, method="output_aligned"):
    statistics = collect(model, batches(SEQUENCES, 512), gradients=method == "loss_aware")
    statistics.samples = SEQUENCES
    statistics.held_back = SEQUENCES[:2] if method == "loss_aware" else []
    plan = plan or Plan.uniform(prunable(model).values(), 0.5, 4)
    return statistics, sieve.project(model, statistics, method), plan


def inputs_of(model, names) -> dict[str, torch.Tensor]:
    kept = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, args, name=name: kept[name].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name in names
    ]
    with torch.no_grad():
        for ids, _ in SEQUENCES:
            model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in kept.items()}


@pytest.mark.parametrize("name", TINY)
def test_paired_states_are_what_the_models_see(name):
    """The inputs of every matrix in both models, against whole runs without padding; as sets of rows."""
    model = tiny_model(name)
    _, factors, plan = state(model)
    dense = inputs_of(model, plan)
    with factors.elastic(model) as elastic, torch.no_grad():
        elastic.set_plan(plan)
        pruned = inputs_of(model, plan)
        with PairedStates(model, batches(SEQUENCES, 100)) as states:
            for index in range(len(states)):
                inside = [matrix for matrix in prunable(tiny_model(name)).values() if matrix.block == index]
                layers = [model.get_submodule(matrix.name) for matrix in inside]
                states.enter_block(index, layers, lambda on: elastic.set_plan(plan if on else {}))
                for matrix, layer in zip(inside, layers, strict=True):
                    rows = [(x[w], y[w]) for x, y, w in (
                        (x, y, torch.ones(len(x), dtype=torch.bool) if w is None else w)
                        for x, y, w in states.inputs(layer)
                    )]  # fmt: skip
                    for which, expected in enumerate((dense, pruned)):
                        found, wanted = torch.cat([pair[which] for pair in rows]), expected[matrix.name]
                        assert found.shape == wanted.shape
                        assert torch.allclose(found.T @ found, wanted.T @ wanted, rtol=1e-3, atol=1e-2), matrix
                states.leave_block()
    assert not any("forward" in block.__dict__ for block in decoder_blocks(model)[1])


@torch.no_grad()
def final_error(model, dense) -> float:
    """Squared error of the last hidden states on the calibration tokens."""
    return sum(
        float((model.base_model(torch.tensor([ids])).last_hidden_state - dense[i]).square().sum())
        for i, (ids, _) in enumerate(SEQUENCES)
    )


@pytest.mark.parametrize("name", TINY)
def test_the_pruned_model_comes_nearer_to_the_dense_one(name):
    model = tiny_model(name)
    with torch.no_grad():
        dense = [model.base_model(torch.tensor([ids])).last_hidden_state for ids, _ in SEQUENCES]
    statistics, factors, plan = state(model)
    plan[next(iter(plan))] = "dense"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    again = sieve.refit(model, factors, plan, statistics, ridge=0.01, batch_tokens=100)
    assert again.keys() == plan.ranks().keys()
    assert all(pair.max_rank == plan[matrix] for matrix, pair in again.items())
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    with factors.elastic(model) as elastic:
        elastic.set_plan(plan)
        old = final_error(model, dense)
    with again.elastic(model) as elastic:
        elastic.set_plan(plan)
        new = final_error(model, dense)
    assert new < old
    expected = sieve.apply_(tiny_model(name), again, plan)
    assert final_error(expected, dense) == pytest.approx(new, rel=1e-3)


def test_attention_runs_twice_in_the_pruned_model(monkeypatch):
    """Up to the input of o_proj, then to its end; what it returned serves the inputs of the MLP and the way out."""
    model = tiny_model("llama")
    statistics, factors, plan = state(model)
    attention, calls = torch.nn.functional.scaled_dot_product_attention, []

    def counted(*args, **kwargs):
        calls.append(1)
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    sieve.refit(model, factors, plan, statistics, batch_tokens=100)
    blocks, runs = len(decoder_blocks(model)[1]), len(batches(SEQUENCES, 100))
    assert runs > 1
    assert len(calls) == blocks * (3 * runs + 2)  # dense once; two passes of one batch to learn by


def test_the_first_matrices_have_nothing_to_make_good():
    """q, k and v of block 0 read what they read in the dense model; down_proj does not."""
    model = tiny_model("llama")
    statistics, factors, plan = state(model)
    again = sieve.refit(model, factors, plan, statistics, ridge=1e-5)
    for name, rank in plan.ranks().items():
        old, new = ((pair.B[:, :rank] @ pair.A[:rank]) for pair in (factors[name], again[name]))
        same = "layers.0.self_attn" in name and "o_proj" not in name
        assert torch.allclose(old, new, atol=2e-3) == same, name


@pytest.mark.parametrize("pivot", [False, True])
def test_loss_aware_pairs_stay_loss_aware(pivot):
    """Their measure of an error is taken over, and the result can be stored pivoted."""
    model = tiny_model("llama")
    statistics, factors, _ = state(model, method="loss_aware")
    factors.ridge = 0.5
    plan = Plan.uniform(prunable(model, pivot).values(), 0.4, 4)
    again = sieve.refit(model, factors, plan, statistics, ridge=0.01)
    assert (again.method, again.ridge) == ("loss_aware", 0.5)
    assert sieve.refit(model, factors, plan, statistics, ridge=None).keys() == again.keys()
    factors.ridge = math.inf
    plain = sieve.refit(model, factors, plan, statistics, ridge=0.01)
    name = "model.layers.0.self_attn.q_proj"
    rank = plan[name]
    G, Y = statistics.grams[f"{name}.gradient"], None
    H = G / G.diagonal().mean() + 0.5 * torch.eye(len(G))
    X = inputs_of(model, [name])[name]
    Y = X @ weight_of(model.get_submodule(name)).detach().T
    errors = [Y - X @ (pair.B[:, :rank] @ pair.A[:rank]).T for pair in (again[name], plain[name])]
    weighed = [float(((E @ H) * E).sum()) for E in errors]
    assert weighed[0] < weighed[1]
    assert float(errors[0].square().sum()) > float(errors[1].square().sum())
    pruned = sieve.apply_(model, again, plan)
    assert torch.isfinite(pruned(input_ids=tiny_tokens()).logits).all()


def test_bad_input(monkeypatch):
    model = tiny_model("llama")
    statistics, factors, plan = state(model)
    for ridge in (0, -1, math.inf, math.nan):
        with pytest.raises(InputError, match="positive and finite"):
            sieve.refit(model, factors, plan, statistics, ridge=ridge)
    with pytest.raises(InputError, match="not a prunable matrix"):
        sieve.refit(model, factors, {"lm_head": 4}, statistics)
    with pytest.raises(InputError, match="no calibration examples"):
        sieve.refit(model, factors, plan, collect(model, batches(SEQUENCES, 512)))
    broken = "model.layers.0.mlp.up_proj"
    factors[broken].A.fill_(math.nan)
    plan_of_two = {broken: 4, "model.layers.0.mlp.down_proj": 4, "model.layers.1.mlp.up_proj": 4}
    again = sieve.refit(model, factors, plan_of_two, statistics)  # its own pair is made anew
    assert torch.isfinite(again[broken].A).all()
    model.get_submodule("model.layers.1.input_layernorm").weight.data.fill_(math.inf)
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.up_proj"):
        sieve.refit(model, factors, plan_of_two, statistics)
    assert type(model.get_submodule(broken)) is torch.nn.Linear


def test_a_dead_input_keeps_its_pair():
    model = tiny_model("llama")
    statistics, factors, _ = state(model)
    name = "model.layers.1.mlp.down_proj"
    model.get_submodule("model.layers.1.mlp.up_proj").weight.data.zero_()
    again = sieve.refit(model, factors, {name: 4}, statistics)
    assert again[name] is factors[name]


@pytest.mark.parametrize("loss_ridge", [math.inf, 0.3])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_held_back_error_is_that_of_the_outputs(m, n, loss_ridge):
    """Differences between two pairs, measured on the data themselves."""
    W, X, given, G = problem(m, n)
    gradient = solve(W, X, given, G)[1]
    H = torch.eye(m, dtype=torch.float64)
    if math.isfinite(loss_ridge):
        H = G / gradient.diagonal().mean() + loss_ridge * H
    found, expected = [], []
    for ridge in (0.01, 1.0):
        (A, B, _), _ = solve(W, X, given, ridge=ridge)
        found.append(held_back_error(W, A[:5], B[:, :5], given @ given.T, X @ given.T, gradient, loss_ridge))
        E = W @ X - B[:, :5] @ A[:5] @ given
        expected.append(float((E * (H @ E)).sum()))
    assert found[0] - found[1] == pytest.approx(expected[0] - expected[1], rel=1e-6)


def test_a_refit_that_does_not_help_new_examples_is_not_made(monkeypatch):
    """Where every candidate is worse on what is held back, pairs stay; where one is best, it is fitted on all data."""
    model = tiny_model("llama")
    statistics, factors, _ = state(model)
    name = "model.layers.1.mlp.down_proj"
    refitting = import_module("sieve.compression.low_rank.refit")
    for errors, ridge in (([0, 1, 2, 3, 4], None), ([3, 2, 1, 2, 3], 0.1), ([3, math.nan, 2, 1, 5], 0.01)):
        order = iter(errors)
        monkeypatch.setattr(refitting, "held_back_error", lambda *arguments, order=order: next(order))
        pair = sieve.refit(model, factors, {name: 4}, statistics, ridge=None)[name]
        expected = factors[name] if ridge is None else sieve.refit(model, factors, {name: 4}, statistics, ridge)[name]
        assert torch.allclose(pair.B @ pair.A, expected.B[:, :4] @ expected.A[:4], atol=1e-3)
