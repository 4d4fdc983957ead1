"""The search over refitted plans: what it takes is known where scores are; its numbers are those of its pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import sieve
from sieve.compression.plan import Plan
from sieve.evaluation.scoring import evaluate
from sieve.models.linears import prunable
from sieve.searchers.engine.journal import Journal
from sieve.searchers.problem import Candidate
from sieve.searchers.refitted import best_refitted, smallest_refitted
from sieve.searchers.run import run_search
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def searched(world):
    """A model, what a search of it needs, its result with four smaller plans to go on to."""
    model, tokenizer, task = tiny_model("llama"), tiny_tokenizer(), sieve.load_task(world.task)
    statistics = sieve.calibrate(model, tokenizer, task, 1000)
    factors = sieve.project(model, statistics, pivot=True)
    result = run_search(model, tokenizer, factors, task, 0.9, "uniform", rank_multiple=4)
    sizes = (0.2, 0.3, 0.4, 0.5, 0.8)
    *smaller, plan = (Plan.uniform(prunable(model, True).values(), kept, 4) for kept in sizes)
    return model, tokenizer, factors, statistics, replace(result, plan=plan, smaller=smaller), task


def with_dense(result, fitness: float, validation: float):
    """The result with other accuracies of the dense model."""
    accuracies = {"fitness": fitness, "validation": validation}
    dense = {
        split: replace(scores, score=np.full(len(scores.score), accuracies[split]))
        for split, scores in result.dense.items()
    }
    return replace(result, dense=dense)


def test_takes_the_smallest_where_all_are_good_enough(searched):
    model, tokenizer, factors, statistics, result, task = searched
    found = smallest_refitted(model, tokenizer, factors, statistics, with_dense(result, 0, 0), task, 0.05)
    assert found.plan == result.smaller[0]
    assert found.validation_attempts == 1
    assert len(found.evaluated) <= 3  # bisection over five
    expected = sieve.refit(model, factors, found.plan, statistics)
    assert found.factors.keys() == expected.keys()
    assert all(torch.equal(found.factors[name].A, pair.A) for name, pair in expected.items())
    pruned = sieve.apply_(tiny_model("llama"), expected, found.plan)
    for split, scores in found.pruned.items():
        again = evaluate(pruned, tokenizer, task, task.splits(0)[split])
        assert np.array_equal(scores.loglik, again.loglik)


def test_none_where_even_the_largest_is_not_good_enough(searched):
    model, tokenizer, factors, statistics, result, task = searched
    assert smallest_refitted(model, tokenizer, factors, statistics, with_dense(result, 9, 0), task, 0.05) is None


def test_validation_has_its_say_on_every_plan(searched):
    model, tokenizer, factors, statistics, result, task = searched
    assert smallest_refitted(model, tokenizer, factors, statistics, with_dense(result, 0, 9), task, 0.05) is None


def test_a_plan_that_bisection_has_passed_is_confirmed_with_its_own_pairs(searched, monkeypatch):
    """The first on validation fails, so the next is asked, whose pairs bisection made and let go."""
    from sieve.searchers import refitted

    model, tokenizer, factors, statistics, result, task = searched
    lenient = with_dense(result, 0, 0)
    answers = iter([False, True])
    plain = refitted.within

    def within(scores, dense, *rest):
        return next(answers) if dense is lenient.dense["validation"] else plain(scores, dense, *rest)

    monkeypatch.setattr(refitted, "within", within)
    found = smallest_refitted(model, tokenizer, factors, statistics, lenient, task, 0.05)
    assert (found.plan, found.validation_attempts) == (result.smaller[1], 2)
    expected = sieve.refit(model, factors, found.plan, statistics)
    assert all(torch.equal(found.factors[name].B, pair.B) for name, pair in expected.items())


class Killed(BaseException):
    """What stops a process here as a signal does."""


@pytest.mark.parametrize("accuracies", [(0, 0), (9, 0)], ids=["taken", "none is good"])
def test_finished_refits_are_not_made_again(searched, tmp_path, monkeypatch, accuracies):
    """Killed before each further refit and begun again with the journal: only pairs that are taken are made twice."""
    from sieve.searchers import refitted

    model, tokenizer, factors, statistics, result, task = searched
    made, plain, journal = [], refitted.refit, tmp_path / "journal"
    given = (model, tokenizer, factors, statistics, with_dense(result, *accuracies), task, 0.05)

    def living(number):
        left = iter(range(number))

        def refit(model, factors, plan, *more):
            if next(left, None) is None:
                raise Killed
            made.append(str(plan))
            return plain(model, factors, plan, *more)

        monkeypatch.setattr(refitted, "refit", refit)

    living(99)
    whole = smallest_refitted(*given)
    wanted = [*made]
    made.clear()
    for _ in range(len(set(wanted)) - 1):
        living(1)
        with Journal(journal, {}) as book, pytest.raises(Killed):
            smallest_refitted(*given, journal=book)
    assert len(set(wanted)) > 1
    assert made == list(dict.fromkeys(wanted))[:-1]
    living(99)
    with Journal(journal, {}) as book:
        again = smallest_refitted(*given, journal=book)
    assert len(made) <= len(wanted) + 1
    assert (again is None) == (whole is None)
    if whole is not None:
        assert (again.plan, again.validation_attempts) == (whole.plan, whole.validation_attempts)
        assert [str(one) for one in again.evaluated] == [str(one) for one in whole.evaluated]
        assert all(torch.equal(again.factors[name].A, pair.A) for name, pair in whole.factors.items())
        made.clear()
        with Journal(journal, {}) as book:
            smallest_refitted(*given, journal=book)
        assert made == [str(whole.plan)]


def test_a_finished_size_is_not_refitted_again_where_a_size_is_asked_for(searched, tmp_path, monkeypatch):
    from sieve.searchers import refitted

    model, tokenizer, factors, statistics, result, task = searched
    result = replace(result, tried=[Candidate(plan, result.dense["validation"]) for plan in result.smaller[1:]])
    made, plain = [], refitted.refit

    def refit(model, factors, plan, *more):
        made.append(str(plan))
        return plain(model, factors, plan, *more)

    monkeypatch.setattr(refitted, "refit", refit)
    found = []
    for _ in range(2):
        with Journal(tmp_path / "journal", {}) as book:
            found.append(best_refitted(model, tokenizer, factors, statistics, result, task, journal=book))
    assert made == [*(str(one.plan) for one in result.tried), str(found[0].plan)]
    assert found[1].plan == found[0].plan
    assert [str(one) for one in found[1].evaluated] == [str(one) for one in found[0].evaluated]
