"""Of a size that is asked for: what is offered for validation, and what validation takes of it."""

import pytest

from sieve.compression.plan import Plan
from sieve.evaluation.scoring import evaluate
from sieve.models.linears import prunable
from sieve.searchers.algorithms.base import SEARCHERS, Searcher
from sieve.searchers.run import run_search
from sieve.tasks import load_task
from tests.sieve.searchers.engine.test_engine import svd_factors
from tests.sieve.searchers.test_search import landscape_problem
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("searcher", ["ga", "pareto"])
def test_the_allocation_is_among_them(searcher):
    """By the fitness examples others are better, which need not be so on the validation split."""
    problem = landscape_problem(kept=0.6, generations=4)
    finalists = list(SEARCHERS[searcher].run(problem))
    (allocated,) = SEARCHERS["budget"].run(landscape_problem(kept=0.6))
    assert sum(candidate.plan == allocated.plan for candidate in finalists) == 1
    assert len(finalists) == (3 if allocated.plan in [candidate.plan for candidate in finalists[:3]] else 4)
    values = [candidate.scores.mean_loglik for candidate in finalists]
    assert values == sorted(values, reverse=True)
    assert all(problem.accepts(candidate) for candidate in finalists)


def test_without_predictions_it_is_the_uniform_one():
    problem = landscape_problem(kept=0.6, generations=2, surrogate=False)
    *_, last = SEARCHERS["ga"].run(problem)
    kept = list(last.plan.kept(problem.matrices).values())
    assert problem.accepts(last)
    assert max(kept) - min(kept) < 0.2


def test_the_paper_has_one():
    options = {"paper": True, "surrogate": False, "generations": 1}
    assert len(list(SEARCHERS["ga"].run(landscape_problem(kept=0.6, **options)))) == 1


def test_validation_chooses(world, monkeypatch):
    """Offered the best one in the middle, the search takes it; asked for a tolerance, it takes the first that holds."""
    model, tokenizer, task = tiny_model("llama"), tiny_tokenizer(), load_task(world.task)
    factors = svd_factors(model)
    offered = [Plan.uniform(prunable(model).values(), kept, 4) for kept in (0.3, 0.9, 0.5)]
    monkeypatch.setattr(Searcher, "run", lambda self, problem: map(problem.evaluate, offered))
    options = {"search": "ga", "rank_multiple": 4, "bottlenecks": 0}
    values = []
    for plan in offered:
        with factors.elastic(model) as elastic:
            elastic.set_plan(plan)
            scores = evaluate(model, tokenizer, task, task.splits()["validation"])
            values.append((scores.accuracy, scores.ranking_score.mean()))
    best = values.index(max(values))
    offered[1], offered[best] = offered[best], offered[1]

    result = run_search(model, tokenizer, factors, task, kept=0.95, **options)
    assert result.plan.ranks() == offered[1].ranks()
    assert result.validation_attempts == 3
    assert result.pruned["validation"].accuracy == max(values)[0]
    assert result.pruned["validation"].ranking_score.mean() == pytest.approx(max(values)[1], abs=1e-4)
    tolerant = run_search(model, tokenizer, factors, task, 0.99, **options)
    assert tolerant.plan.ranks() == offered[0].ranks()
    assert tolerant.validation_attempts == 1
