"""Every searcher on a tiny model, end to end, and on made-up scores whose best plan is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import sieve
from sieve.compression.plan import Plan
from sieve.errors import InputError, StorageError, ToleranceError
from sieve.evaluation.scoring import Scores, concatenated, evaluate
from sieve.models.linears import prunable
from sieve.models.matrix import Matrix
from sieve.searchers.algorithms.base import SEARCHERS
from sieve.searchers.algorithms.budget import allocations, smaller
from sieve.searchers.algorithms.evolution import Evolution
from sieve.searchers.config import Options
from sieve.searchers.engine.cost import Cost, Spent
from sieve.searchers.genome import Genome
from sieve.searchers.problem import SearchProblem
from sieve.searchers.run import run_search
from sieve.searchers.surrogate import Surrogate
from tests.sieve.searchers.engine.test_engine import svd_factors
from tests.tiny_models import tiny_model, tiny_tokenizer

N = 200


class Landscape:
    """An engine over made-up scores: every matrix has its own price per level lost; most are nearly free.

    An example is answered while the summed price is below its hardness, so that accuracy falls with the price.
    """

    def __init__(self, matrices, seed=0):
        draw = np.random.default_rng(seed)
        self.matrices = matrices
        self.price = dict(zip(matrices, draw.permutation(np.geomspace(0.01, 2, len(matrices))), strict=True))
        self.hardness = draw.permutation(np.linspace(0, 3, N))
        self.borders = [0, N // 4, N // 2, N]
        self.cost = Cost(1, 0.0, [50, 50, 100], [50, 50, 100])
        self.nominal = 0
        self.asked = {}

    def __len__(self):
        return 3

    def scores(self, plans, part):
        first, end = self.borders[part : part + 2]
        results = []
        for plan in plans:
            kept = Plan(plan).kept(self.matrices)
            price = sum(self.price[name] * (1 - kept[name]) ** 2 for name in self.matrices)
            results.append(
                Scores((self.hardness[first:end] >= price).astype(float), -price - self.hardness[first:end] / 9, 1)
            )
            if (str(plan), part) not in self.asked:
                self.nominal += end - first
                self.asked[str(plan), part] = None
                self.cost.evaluated(str(plan), part, Spent(end - first, end - first, 0))
        return results

    def retain(self, plans):
        pass

    def full(self, plan):
        return concatenated([self.scores([plan], part)[0] for part in range(3)])

    def curves(self, noise=0.3, seed=1):
        draw = np.random.default_rng(seed)
        return {
            name: self.price[name]
            * np.exp(noise * draw.normal())
            * np.array([(1 - matrix.size(rank) / matrix.parameters) ** 2 for rank in range(matrix.max_rank + 1)])
            for name, matrix in self.matrices.items()
        }


def landscape_problem(tolerance=0.1, seed=0, **options):
    matrices = {f"w{i}": Matrix(f"w{i}", 64, 96, i // 2, True) for i in range(16)}
    land = Landscape(matrices, seed)
    choices = Options(**options).check()
    curves = land.curves() if choices.surrogate else None
    return SearchProblem(matrices, land.full, land.full({}), tolerance, False, 4, seed, land, curves, choices)


def first(searcher, **options):
    problem = landscape_problem(**options)
    return problem, next(SEARCHERS[searcher].run(problem))


@pytest.mark.parametrize("searcher", ["ga", "pareto", "budget"])
def test_removes_more_than_uniform_within_the_same_tolerance(searcher):
    problem, winner = first(searcher)
    other, uniform = first("uniform")
    assert problem.accepts(winner)
    assert winner.plan.prunable_removed(problem.matrices) > 1.3 * uniform.plan.prunable_removed(other.matrices)


@pytest.mark.parametrize(("searcher", "slack"), [("ga", 1.03), ("pareto", 1.1)])  # the latter spreads over all sizes
def test_evolution_keeps_up_with_a_finer_grid_of_allocations(searcher, slack):
    problem, winner = first(searcher)
    other, allocated = first("budget")
    assert winner.plan.size(problem.matrices) <= slack * allocated.plan.size(other.matrices)
    assert problem.rank_correlation > 0.5


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_smaller_plans_go_on_from_a_winner(searcher):
    problem, winner = first(searcher)
    plans = smaller(problem, winner.plan)
    sizes = [problem.size(plan) for plan in (*plans, winner.plan)]
    assert len(sizes) > 3
    assert sizes == sorted(set(sizes))
    if searcher == "budget":
        every = allocations(problem.genome(), Surrogate(problem.genome(), problem.curves))
        assert plans == every[: every.index(winner.plan)]


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_best_of_a_size(searcher):
    problem, winner = first(searcher, kept=0.6)
    assert winner.plan.size(problem.matrices) <= problem.size_limit
    assert winner.plan.prunable_removed(problem.matrices) < 0.5  # and no smaller than need be


@pytest.mark.parametrize("searcher", ["ga", "pareto"])
@pytest.mark.parametrize("off", ["surrogate", "racing", "paper"])
def test_switched_off(searcher, off):
    options = {"paper": True, "surrogate": False} if off == "paper" else {off: False}
    problem, winner = first(searcher, generations=4, tolerance=0.3, **options)
    assert problem.accepts(winner)
    if off == "racing":
        assert problem.engine.cost.racing == 0


def test_racing_and_screening_save():
    problem, _ = first("ga")
    assert problem.engine.cost.racing > 0
    assert problem.engine.cost.screened > 0


def test_same_seed_same_search():
    runs = [first("ga", generations=4) for _ in range(2)]
    assert runs[0][1].plan == runs[1][1].plan
    assert list(runs[0][0].engine.asked) == list(runs[1][0].engine.asked)
    assert first("ga", generations=4, seed=1)[0].engine.asked != runs[0][0].engine.asked


def test_the_objective_decides_what_is_small():
    """A matrix that a pair makes no faster stays dense, and the others make up for it."""
    problem = landscape_problem(kept=0.6)
    problem.size_of = lambda matrix, rank: 1.0 if matrix.name == "w3" else matrix.size(rank) / matrix.parameters
    problem.curves["w3"] *= 0
    winner = next(SEARCHERS["ga"].run(problem))
    assert "w3" not in winner.plan.ranks()
    assert 0.5 < problem.size(winner.plan) / 16 <= 0.6


def test_budget_of_layer_tokens_ends_the_search():
    short, long = (first("ga", budget=budget)[0].engine.nominal for budget in (1, 10**9))
    assert short < long / 3


@pytest.mark.parametrize("searcher", ["ga", "pareto"])
def test_the_front_is_offered_smallest_first(searcher):
    problem = landscape_problem()
    sizes = [candidate.plan.size(problem.matrices) for candidate in SEARCHERS[searcher].run(problem)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_an_impossible_size_names_the_smallest(searcher):
    with pytest.raises(InputError, match="the smallest keeps"):
        first(searcher, kept=0.001)


@pytest.mark.parametrize(
    "options",
    [
        {"kept": 0},
        {"objective": "beauty"},
        {"kept": 1.5},
        {"granularity": "head"},
        {"population": 1},
        {"population": 0},
        {"budget": 0},
    ],
)
def test_bad_options(options):
    with pytest.raises(InputError):
        Options(**options).check()


# On a model


@pytest.fixture(scope="module")
def small(world):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    return SimpleNamespace(model=model, tokenizer=tokenizer, task=world.task, factors=svd_factors(model))


QUICK = {"rank_multiple": 4}
MANY = QUICK | {"bottlenecks": 3}
GENETIC = MANY | {"generations": 2, "population": 4, "offspring": 6}
SMALL = {"uniform": QUICK, "budget": MANY, "ga": GENETIC, "pareto": GENETIC}


def searched(small, searcher="ga", tolerance=0.4, **options):
    return run_search(
        small.model, small.tokenizer, small.factors, small.task, tolerance, searcher, **SMALL[searcher] | options
    )


@pytest.mark.parametrize("searcher", ["ga", "pareto", "budget"])
def test_a_model_end_to_end(small, searcher):
    splits = sieve.load_task(small.task).splits(0)
    before = evaluate(small.model, small.tokenizer, sieve.load_task(small.task), splits["test"])
    result = searched(small, searcher)
    after = evaluate(small.model, small.tokenizer, sieve.load_task(small.task), splits["test"])
    assert np.array_equal(before.loglik, after.loglik)
    assert result.pruned["validation"].accuracy >= 0.6 * result.dense["validation"].accuracy
    assert len(result.pruned["fitness"].score) == len(splits["fitness"])
    cost = result.cost
    saved = cost["saved_by"]
    together = cost["layer_tokens_spent"] + saved["prefix"] + saved["layers"] + saved["racing"]
    assert cost["layer_tokens_plain"] + cost["layer_tokens_overhead"] == together
    assert cost["candidates"] > 1
    assert len(result.bottlenecks) <= 3
    assert all(one.lower < one.kept <= 1 for one in result.bottlenecks)


def test_bottlenecks_are_what_an_ablation_says(small):
    result = searched(small, "budget", kept=0.7)
    assert len(result.bottlenecks) == 3
    genome = Genome(prunable(small.model), multiple=4)
    (worst, *_) = result.bottlenecks
    (gene,) = [gene for gene in genome.genes if gene.names == worst.names]
    ranks = [rank for (rank,) in gene.levels if genome.size_of(worst.names[0], rank) == round(
        worst.lower * genome.matrices[worst.names[0]].parameters)]  # fmt: skip
    splits = sieve.load_task(small.task).splits(0)
    scores = []
    for plan in (result.plan, {**result.plan, worst.names[0]: ranks[0]}):
        pruned = sieve.apply_(tiny_model("llama"), small.factors, plan)
        scores.append(evaluate(pruned, small.tokenizer, sieve.load_task(small.task), splits["fitness"]))
    assert worst.loglik == pytest.approx(scores[1].mean_loglik - scores[0].mean_loglik, abs=1e-4)
    assert worst.accuracy == pytest.approx(scores[1].accuracy - scores[0].accuracy)


@pytest.mark.parametrize("objective", ["bytes", "latency"])
def test_objectives(small, objective, tmp_path, monkeypatch):
    """A layer's time is asked once: here one that says that only MLPs gain from pairs."""
    measured = []

    def measure(model, matrices):
        measured.append(1)
        return {
            f"{one.m} x {one.n}": [(0, one.parameters), *([(4, 900), (20, 2000)] if "mlp" in name else [])]
            for name, one in matrices.items()
        }

    monkeypatch.setattr("sieve.searchers.recorded.measure", measure)
    result = searched(small, "budget", objective=objective, kept=0.97, journal=tmp_path / "journal")
    again = searched(small, "budget", objective=objective, kept=0.97, journal=tmp_path / "journal")
    assert result.plan == again.plan
    if objective == "bytes":
        assert 0.03 <= result.plan.prunable_removed(result.matrices) < 0.2
    else:
        assert len(measured) == 1
        assert result.plan
        assert all(".mlp." in name for name in result.plan)


def test_only_the_named_matrices_are_pruned(small):
    names = [name for name in prunable(small.model) if name.endswith(("up_proj", "o_proj"))]
    result = searched(small, matrices=names)
    assert set(result.plan.ranks()) <= set(names)
    assert result.plan.ranks()
    with pytest.raises(InputError, match="nowhere"):
        searched(small, matrices=["nowhere"])


def test_the_user_s_own_fitness(small):
    calls = []

    def fitness(model, examples):
        """Half a matrix's norm: a score that only looks at the model."""
        calls.append(len(examples))
        rank = getattr(model.model.layers[0].mlp.up_proj, "rank", None)  # none where the stored matrix is dense
        return [1.0 if rank is None else rank / 100] * len(examples)

    result = searched(small, "ga", 0.9, fitness=fitness)
    rank = result.plan.get("model.layers.0.mlp.up_proj")
    assert result.pruned["fitness"].accuracy == (1.0 if rank is None else rank / 100)
    assert set(calls) >= {len(result.pruned["validation"].score)}
    with pytest.raises(InputError, match="one finite number"):
        searched(small, "ga", fitness=lambda model, examples: [1.0])


def test_a_journal_gives_the_same_winner_and_is_refused_when_something_changed(small, tmp_path):
    path = tmp_path / "journal"
    whole = searched(small)
    kept = searched(small, journal=path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert kept.plan == whole.plan
    draw = np.random.default_rng(0)
    for length in draw.integers(1, sum(map(len, lines)), size=20):  # a crash at any byte
        path.write_bytes(b"".join(lines)[:length])
        again = searched(small, journal=path)
        assert again.plan == whole.plan
        assert [c.plan for c in again.evaluated] == [c.plan for c in whole.evaluated]
        keys = [json.loads(line.split(b" ", 1)[1]).get("key") for line in path.read_bytes().splitlines()]
        assert len(set(keys)) == len(keys) == len(lines)
    with pytest.raises(InputError, match="changed since are recipe"):
        searched(small, journal=path, tolerance=0.3)
    with pytest.raises(InputError, match="changed since are data, recipe"):
        searched(small, journal=path, seed=1)
    other = SimpleNamespace(**vars(small) | {"model": tiny_model("llama", seed=1)})
    with pytest.raises(InputError, match="changed since are model"):
        searched(other, journal=path)
    damaged = path.read_bytes().splitlines(keepends=True)
    damaged[2] = damaged[2].replace(b"0", b"1", 1)
    path.write_bytes(b"".join(damaged))
    with pytest.raises(StorageError, match="line 3"):
        searched(small, journal=path)


@pytest.mark.parametrize("searcher", ["uniform", "ga"])
def test_a_tolerance_that_even_the_dense_model_misses(small, searcher):
    """Of scores below zero, 95 % are more."""
    with pytest.raises(InputError, match="even the dense model misses the tolerance on the fitness split"):
        searched(small, searcher, 0.05, fitness=lambda model, examples: [-1.0] * len(examples))
    validation = sieve.load_task(small.task).splits(0)["validation"]
    with pytest.raises(InputError, match="on the validation split"):
        searched(
            small, searcher, 0.05, fitness=lambda model, asked: [-1.0 if asked == validation else 1.0] * len(asked)
        )


def test_no_candidate_is_good_enough(small):
    def fitness(model, examples):
        dense = all(getattr(layer, "rank", None) is None for layer in model.modules())
        return [float(dense)] * len(examples)

    with pytest.raises(ToleranceError, match="nearest"):
        searched(small, fitness=fitness)


@pytest.mark.parametrize("searcher", ["ga", "pareto"])
def test_validation_can_step_back_as_far_as_to_the_dense_model(searcher):
    """What the front offers is a few sizes near the smallest; a stricter validation is offered larger ones."""
    problem = landscape_problem(generations=2, population=12, offspring=12)
    offered = list(SEARCHERS[searcher].run(problem))
    sizes = [candidate.plan.size(problem.matrices) for candidate in offered]
    assert sizes == sorted(sizes)
    assert all(problem.accepts(candidate) for candidate in offered)
    dense = sum(matrix.parameters for matrix in problem.matrices.values())
    assert sizes[-1] > 0.9 * dense
    assert len(sizes) > 8
    assert max(np.diff(sizes)) < 0.2 * dense


def test_likelihoods_tell_where_scores_say_nothing():
    """A task whose answers do not change with the price: of one size, the cheapest is still found."""
    problem = landscape_problem(kept=0.6, generations=6, population=16, offspring=16)
    land = problem.engine
    plain = land.scores
    land.scores = lambda plans, part: [Scores(np.ones_like(s.score), s.loglik, s.tokens) for s in plain(plans, part)]
    winner = next(SEARCHERS["ga"].run(problem))
    (allocated,) = SEARCHERS["budget"].run(landscape_problem(kept=0.6))
    assert winner.scores.mean_loglik >= allocated.scores.mean_loglik


def test_right_choices_are_weighed_against_the_wrong_ones():
    """A task whose right choices become likelier as matrices shrink, and the wrong ones even more."""
    problem = landscape_problem(kept=0.6, generations=6, population=16, offspring=16)
    land = problem.engine
    plain = land.scores
    land.scores = lambda plans, part: [
        Scores(np.ones_like(s.score), -s.loglik, s.tokens, s.loglik) for s in plain(plans, part)
    ]
    problem.dense = land.full({})
    winner = next(SEARCHERS["ga"].run(problem))
    (allocated,) = SEARCHERS["budget"].run(landscape_problem(kept=0.6))
    assert winner.scores.choice_logprob.mean() >= allocated.scores.mean_loglik


def test_a_line_that_would_fall_is_not_drawn():
    problem = landscape_problem()
    evolution = Evolution(problem)
    evolution.scored = {
        bytes([i]): (None, Scores(np.full(N, 0.98 - 0.01 * i), np.full(N, 0.1 * i), 1)) for i in range(5)
    }
    evolution.fit_score_calibration()
    some = problem.dense
    assert np.array_equal(evolution.value(some), some.score)
