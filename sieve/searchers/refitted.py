"""How much smaller a plan may become when its pairs are fitted anew: bisection over refitted candidates.

A refit makes good what the pairs before it have lost, so the tolerance holds at sizes that a search over nested factors
had to refuse. It follows one plan, so each candidate costs a refit: few are tried, of sizes that the search's winner
leads to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve import progress
from sieve.apply import applied
from sieve.calibration import Statistics
from sieve.fitness import Scores, evaluate
from sieve.plan import Plan
from sieve.projections import Factors, refit
from sieve.searchers.confirm import merit
from sieve.searchers.problem import Candidate, Problem, within
from sieve.searchers.run import SearchResult
from sieve.searchers.uniform import smallest
from sieve.tasks import Task


@dataclass(frozen=True)
class Refitted:
    """The refitted plan that was taken: the smallest that was confirmed, or the best of the size that was asked for.

    factors: its pairs.
    pruned: scores by split ("fitness", "validation") of its stored form: what `sieve.apply_` makes of it.
    evaluated: every refitted candidate that was scored on the fitness split, in order, in that form too.
    validation_attempts: how many of them the validation split was asked about.
    """

    plan: Plan
    factors: Factors
    pruned: dict[str, Scores]
    evaluated: list[Candidate]
    validation_attempts: int


def smallest_refitted(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: Factors,
    statistics: Statistics,
    result: SearchResult,
    task: Task,
    tolerance: float,
    confident: bool = False,
    seed: int = 0,
) -> Refitted | None:
    """The search's plan, or a smaller one, whose refitted pairs keep the score within the tolerance.

    Chosen on the fitness split and confirmed on the validation split, as the search itself does, and always as
    `sieve.apply_` stores them; None where no refitted plan passes.

    Args:
        model: the dense model; not changed.
        factors, statistics: as for `refit`.
        result: of a search by a tolerance; `result.smaller` is what is tried beyond its plan.
        task, tolerance, confident, seed: the search's.
    """
    made: dict[str, Factors] = {}  # the last accepted plan's alone: all of them may be larger than the model
    scored = _scorer(model, tokenizer, result, task, seed)

    def pairs(plan: Mapping[str, int | str]) -> Factors:
        return made[str(plan)] if str(plan) in made else refit(model, factors, plan, statistics)

    def score(plan: Plan) -> Scores:
        given = pairs(plan)
        scores = scored(plan, given, "fitness")
        if within(scores, result.dense["fitness"], tolerance, confident):
            made.clear()
            made[str(plan)] = given
        return scores

    problem = Problem(result.matrices, score, result.dense["fitness"], tolerance, confident)
    for attempts, candidate in enumerate(smallest(problem, [*result.smaller, result.plan]), 1):
        given = pairs(candidate.plan)
        validation = scored(candidate.plan, given, "validation")
        if within(validation, result.dense["validation"], tolerance, confident):
            pruned = {"fitness": candidate.scores, "validation": validation}
            return Refitted(candidate.plan, given, pruned, problem.evaluated, attempts)
    return None


def best_refitted(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: Factors,
    statistics: Statistics,
    result: SearchResult,
    task: Task,
    seed: int = 0,
) -> Refitted:
    """Of the plans that validation chose among, the one that is best when its pairs are fitted anew.

    Args: those of `smallest_refitted`; `result` is of a search for a size.
    """
    scored = _scorer(model, tokenizer, result, task, seed)
    evaluated: list[Candidate] = []
    best: tuple[Plan, Factors, dict[str, Scores]] | None = None
    for candidate in result.tried:
        given = refit(model, factors, candidate.plan, statistics)
        pruned = {split: scored(candidate.plan, given, split) for split in ("fitness", "validation")}
        evaluated.append(Candidate(candidate.plan, pruned["fitness"]))
        if best is None or merit(pruned["validation"]) > merit(best[2]["validation"]):
            best = candidate.plan, given, pruned
    return Refitted(*best, evaluated, len(evaluated))


def _scorer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, result: SearchResult, task: Task, seed: int
) -> Callable[[Plan, Factors, str], Scores]:
    """(plan, refitted pairs, split) → scores of what is stored of them."""
    splits = task.splits(seed)

    def scored(plan: Plan, given: Factors, split: str) -> Scores:
        with applied(model, given, plan):
            scores = evaluate(model, tokenizer, task, splits[split])
        progress.say(
            f"  {plan.prunable_removed(result.matrices):6.1%} removed, refitted: {split} accuracy "
            f"{scores.accuracy:.3f}, dense {result.dense[split].accuracy:.3f}"
        )
        return scores

    return scored
