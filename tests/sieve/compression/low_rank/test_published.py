"""Published projections against their formulas, computed independently; and that ours is never behind them."""

import copy

import pytest
import torch

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.compression.low_rank.methods import LOW_RANK
from sieve.compression.low_rank.output_aligned import output_aligned
from sieve.compression.low_rank.problem import Problem
from sieve.compression.low_rank.published import asvd, pca, svd, svd_llm
from sieve.compression.plan import Plan
from sieve.errors import InputError, NumericsError
from sieve.models.linears import prunable, weight_of
from sieve.registry import methods
from tests.sieve.compression.low_rank.test_output_aligned import SHAPES, data
from tests.tiny_models import TINY, tiny_model, tiny_tokens

NESTED = [name for name, method in methods().items() if method.makes is LOW_RANK and method.nested]

SEQUENCES = [Sample(ids, 20) for ids in tiny_tokens(24, 32).tolist()]


def problem(W: torch.Tensor, X: torch.Tensor) -> Problem:
    return Problem(W, X @ X.T, "input", X.shape[1], X.abs().mean(1))


def error(W, X, M) -> float:
    return float(((W @ X - M @ X) ** 2).sum())


def best(W: torch.Tensor, rank: int) -> torch.Tensor:
    """The best rank-r approximation of W itself."""
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vt[:rank]


def by_svd(W, X, rank):
    return best(W, rank)


def by_pca(W, X, rank):
    """Inputs projected on the leading left singular vectors of X."""
    P = torch.linalg.svd(X, full_matrices=False)[0][:, :rank]
    return W @ P @ P.T


def by_asvd(W, X, rank):
    S = torch.diag(X.abs().mean(1) ** 0.5)
    return best(W @ S, rank) @ torch.linalg.inv(S)


def by_svd_llm(W, X, rank):
    S = torch.linalg.cholesky(X @ X.T)
    return best(W @ S, rank) @ torch.linalg.inv(S)


@pytest.mark.parametrize(("method", "formula"), [(svd, by_svd), (pca, by_pca), (asvd, by_asvd), (svd_llm, by_svd_llm)])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_every_rank_is_the_published_formula(method, formula, m, n):
    W, X = data(m, n, 100)
    A, B, energy = method(problem(W, X))
    k = min(m, n)
    assert (A.shape, B.shape, energy.shape) == ((k, n), (m, k), (k,))
    total = float(((W @ X) ** 2).sum())
    for rank in (1, 5, 11):
        M = B[:, :rank] @ A[:rank]
        assert torch.allclose(M, formula(W, X, rank), atol=1e-8)
        assert float(energy[rank:].sum()) == pytest.approx(error(W, X, M), abs=1e-9 * total)
        optimum = output_aligned(W, X @ X.T, "input", 100)[2][rank:].sum()
        assert error(W, X, M) >= float(optimum) - 1e-9 * total
    assert float(energy.sum()) == pytest.approx(total)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_whitening_is_the_optimum_where_it_exists(m, n):
    W, X = data(m, n, 100)
    A, B, _ = svd_llm(problem(W, X))
    ours, theirs, _ = output_aligned(W, X @ X.T, "input", 100)
    for rank in (1, 5, 11):
        assert torch.allclose(B[:, :rank] @ A[:rank], theirs[:, :rank] @ ours[:rank], atol=1e-8)


@pytest.mark.parametrize("singular", ["few tokens", "dead channel"])
def test_whitening_fails_on_singular_covariance_and_jitter_mends_it(singular):
    """No Cholesky factor, which is where the published formula ends; ours has no such case."""
    W, X = data(12, 32, 8 if singular == "few tokens" else 200)
    if singular == "dead channel":
        X[3] = 0
    C = (X @ X.T).float().double()  # statistics arrive in float32
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(C)
    A, B, _ = svd_llm(Problem(W, C, "input", X.shape[1]))
    assert A.isfinite().all()
    ours, theirs, energy = output_aligned(W, C, "input", X.shape[1])
    for rank in (1, 4, 7):
        jittered = error(W, X, B[:, :rank] @ A[:rank])
        optimum = error(W, X, theirs[:, :rank] @ ours[:rank])
        assert optimum <= jittered * (1 + 1e-6)
        assert jittered == pytest.approx(optimum, rel=1e-3, abs=1e-6 * float(energy.sum()))


@pytest.mark.parametrize("method", [svd, pca, asvd, svd_llm])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_dead_channels_and_no_data_at_all(method, m, n):
    W, X = data(m, n, 100)
    X[[0, n - 1]] = 0
    for inputs in (X, 0 * X):
        A, B, energy = method(problem(W, inputs))
        assert all(tensor.isfinite().all() for tensor in (A, B, energy))
        if m >= n or method is not pca:
            assert error(W, inputs, B @ A) == pytest.approx(0, abs=1e-9 * float(((W @ X) ** 2).sum()))


@pytest.fixture(scope="module")
def calibrated():
    model = tiny_model("llama")
    statistics = collect(model, batches(SEQUENCES, 512), "input")
    statistics.samples = SEQUENCES
    return model, statistics


def activations(model) -> dict[str, torch.Tensor]:
    """Matrix → its inputs [n, tokens], float64."""
    kept = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, args, name=name: kept.update({name: args[0].reshape(-1, args[0].shape[-1]).double().T})
        )
        for name in prunable(model)
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids for ids, _ in SEQUENCES]))
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_ours_is_never_behind_on_calibration_output_error(calibrated, kept):
    """Every matrix, the same rank, the same data; the margin is float32's."""
    model, statistics = calibrated
    inputs = activations(model)
    plan = Plan.uniform(prunable(model).values(), kept)
    assert len(plan.ranks()) == 14
    errors = {}
    for method in ("output_aligned", "svd", "pca", "asvd", "svd_llm", "llm_sieve_sgd"):
        factors = sieve.project(model, statistics, method, plan=plan)
        assert factors.keys() == plan.keys()
        for name, rank in plan.ranks().items():
            A, B = factors[name].slice(rank)
            assert A.shape[0] == rank
            W = weight_of(model.get_submodule(name)).detach().double()
            lost = error(W, inputs[name], B.double() @ A.double()) / float(((W @ inputs[name]) ** 2).sum())
            errors[method, name] = lost
            assert lost >= errors["output_aligned", name] * (1 - 1e-4) - 1e-9, (method, name)
            if methods()[method].nested:
                assert factors[name].lost(rank) == pytest.approx(lost, abs=1e-4)
    for method in ("svd", "pca", "asvd", "llm_sieve_sgd"):  # the comparison is one
        assert any(errors[method, name] > 1.05 * errors["output_aligned", name] for name in plan)


def test_methods_that_need_more_than_was_calibrated_say_so(calibrated):
    model, _ = calibrated
    cheapest = collect(model, batches(SEQUENCES, 512))
    nothing = collect(model, batches(SEQUENCES, 512), "none")
    for method, words in (("pca", "inputs of every"), ("loss_aware", "gradients")):
        with pytest.raises(InputError, match=f"{words}.*method='{method}'"):
            sieve.project(model, cheapest, method)
    with pytest.raises(InputError, match="hold no Gram matrices"):
        sieve.project(model, nothing)
    with pytest.raises(InputError, match="give the plan"):
        sieve.project(model, cheapest, "llm_sieve_sgd")
    with pytest.raises(InputError, match="no calibration examples"):
        sieve.project(model, nothing, "llm_sieve_sgd", plan={"model.layers.0.mlp.up_proj": 4})


def test_statistics_of_inputs_serve_every_nested_method(calibrated):
    model, statistics = calibrated
    for method in NESTED:
        if not methods()[method].gradients:
            factors = sieve.project(model, statistics, method)
            assert (factors.method, len(factors)) == (method, 14)


class TestTheRecipe:
    """`llm_sieve_sgd`."""

    @pytest.mark.parametrize("name", TINY)
    def test_learns_projections_of_the_right_side(self, name):
        """M = W P before a non-linearity, P W after one, P a projection of rank r; on every architecture."""
        model = tiny_model(name)
        statistics = collect(model, batches(SEQUENCES[:4], 512), "none")
        statistics.samples = SEQUENCES[:4]
        plan = Plan.uniform(prunable(model).values(), 0.5)
        factors = sieve.project(model, statistics, "llm_sieve_sgd", plan=plan)
        after = 0
        for matrix, rank in plan.ranks().items():
            W = weight_of(model.get_submodule(matrix)).detach().double()
            A, B = (factor.double() for factor in factors[matrix].slice(rank))
            last = matrix.rsplit(".", 1)[1]
            behind = last in ("o_proj", "out_proj", "c_proj", "dense", "down_proj", "fc2", "dense_4h_to_h")
            after += behind
            # P from A = A' W and from B = W B': unique where W has full rank on that side, as it has in these models.
            P = B @ torch.linalg.lstsq(W.T, A.T).solution.T if behind else torch.linalg.lstsq(W, B).solution @ A
            if (W.shape[0] <= W.shape[1]) if behind else (W.shape[0] >= W.shape[1]):
                assert torch.allclose(P @ P, P, atol=1e-3), matrix
                assert torch.allclose(P, P.T, atol=1e-3), matrix
                assert float(P.trace()) == pytest.approx(rank, abs=1e-2)
        assert after == 2 * len({matrix.block for matrix in prunable(model).values()})

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_more_training_comes_nearer_to_the_optimum(self, calibrated, dtype):
        """The same whether the products are float32 or, as those of a bfloat16 model, are not."""
        from sieve.compression.low_rank.llm_sieve_sgd import train

        model, statistics = copy.deepcopy(calibrated[0]).to(dtype), calibrated[1]
        name, rank = "model.layers.1.self_attn.o_proj", 8
        X = activations(model)[name]
        W = weight_of(model.get_submodule(name)).detach().double()
        optimum = output_aligned(W, X @ X.T, "input", X.shape[1])[2][rank:].sum()
        errors = []
        for epochs in (1, 20, 200):
            pair = train(model, statistics, {name: rank}, epochs, batch_tokens=800)[name]
            errors.append(error(W, X, pair.B.double() @ pair.A.double()))
        assert errors[0] > errors[1] > errors[2] >= float(optimum) * (1 - 1e-6)
        assert errors[2] < 1.2 * float(optimum)

    def test_padding_does_not_count(self, calibrated):
        """Whatever stands behind the shorter of two rows, the same A is learned."""
        from sieve.compression.low_rank import llm_sieve_sgd
        from sieve.compression.low_rank.llm_sieve_sgd import train

        model, statistics = calibrated
        name = "model.layers.0.self_attn.q_proj"
        seen = []
        original = llm_sieve_sgd._Learned.step
        llm_sieve_sgd._Learned.step = lambda self, x, y: (seen.append(len(x)), original(self, x, y))[1]
        try:
            statistics.samples = [
                Sample(ids[:length], 1) for (ids, _), length in zip(SEQUENCES, (5, 9, 30), strict=False)
            ]
            train(model, statistics, {name: 4}, 1)
        finally:
            llm_sieve_sgd._Learned.step = original
            statistics.samples = SEQUENCES
        assert seen == [44]

    def test_divergence_names_the_matrix(self, calibrated):
        from sieve.compression.low_rank.llm_sieve_sgd import train

        model, statistics = calibrated
        with pytest.raises(NumericsError, match=r"o_proj diverged"):
            train(model, statistics, {"model.layers.1.self_attn.o_proj": 8}, 2, learning_rate=1e30)
