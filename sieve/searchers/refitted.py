"""How much smaller a plan may become when its pairs are refitted: bisection over refitted candidates.

A refit makes up for what earlier pairs have lost, so the tolerance holds at sizes that a search over nested factors had
to refuse. It follows one plan, so each candidate costs a refit: few are tried, of sizes below that of the search's
winner.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.calibration.statistics import Statistics
from sieve.compression.low_rank.factors import Factors
from sieve.compression.low_rank.refit import refit
from sieve.compression.plan import Plan
from sieve.evaluation.scoring import Scores, evaluate
from sieve.models.prunable_model import PrunableModel
from sieve.searchers.algorithms.uniform import smallest
from sieve.searchers.confirm import validation_key
from sieve.searchers.engine.journal import Journal
from sieve.searchers.engine.remembered import plan_key, remembered
from sieve.searchers.problem import Candidate, SearchProblem, within
from sieve.searchers.run import SearchResult
from sieve.tasks import Task
from sieve.utils import progress


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
    model: PreTrainedModel | PrunableModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: Factors,
    statistics: Statistics,
    result: SearchResult,
    task: Task,
    tolerance: float,
    confident: bool = False,
    seed: int = 0,
    journal: Journal | None = None,
) -> Refitted | None:
    """The search's plan, or a smaller one, whose refitted pairs keep the score within the tolerance.

    Chosen on the fitness split and confirmed on the validation split, as the search itself does, and always as
    `sieve.apply_` stores them; None where no refitted plan passes.

    Args:
        model: the dense model; not changed.
        factors, statistics: as for `refit`.
        result: of a search by a tolerance; `result.smaller` is what is tried beyond its plan.
        task, tolerance, confident, seed: the search's.
        journal: that of the search, which keeps the scores: what an earlier process has tried is not refitted again,
            except for the plan that is taken.
    """
    model = PrunableModel.of(model)
    pairs = _Pairs(lambda plan: refit(model, factors, plan, statistics))
    scored = _scorer(model, tokenizer, result, task, seed, pairs, journal)

    def score(plan: Plan) -> Scores:
        scores = scored(plan, "fitness")
        if within(scores, result.dense["fitness"], tolerance, confident, result.margin):
            pairs.keep()
        return scores

    problem = SearchProblem(result.matrices, score, result.dense["fitness"], tolerance, confident, margin=result.margin)
    for attempts, candidate in enumerate(smallest(problem, [*result.smaller, result.plan]), 1):
        validation = scored(candidate.plan, "validation")
        if within(validation, result.dense["validation"], tolerance, confident, result.margin):
            pruned = {"fitness": candidate.scores, "validation": validation}
            return Refitted(candidate.plan, pairs(candidate.plan), pruned, problem.evaluated, attempts)
    return None


def best_refitted(
    model: PreTrainedModel | PrunableModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: Factors,
    statistics: Statistics,
    result: SearchResult,
    task: Task,
    seed: int = 0,
    journal: Journal | None = None,
) -> Refitted:
    """Of the plans that validation chose among, the one that is best when its pairs are refitted.

    Args: those of `smallest_refitted`; `result` is of a search for a size.
    """
    model = PrunableModel.of(model)
    pairs = _Pairs(lambda plan: refit(model, factors, plan, statistics))
    scored = _scorer(model, tokenizer, result, task, seed, pairs, journal)
    evaluated: list[Candidate] = []
    best: tuple[Plan, dict[str, Scores]] | None = None
    for candidate in result.tried:
        pruned = {split: scored(candidate.plan, split) for split in ("fitness", "validation")}
        evaluated.append(Candidate(candidate.plan, pruned["fitness"]))
        if best is None or validation_key(pruned["validation"]) > validation_key(best[1]["validation"]):
            best = candidate.plan, pruned
            pairs.keep()
    plan, pruned = best
    return Refitted(plan, pairs(plan), pruned, evaluated, len(evaluated))


class _Pairs:
    """Refitted pairs of a plan, made when they are asked for.

    Only the last plan's and those told to keep are held: all of them may be larger than the model.
    """

    def __init__(self, make: Callable[[Plan], Factors]):
        self._make = make
        self._last: dict[str, Factors] = {}
        self._kept: dict[str, Factors] = {}

    def __call__(self, plan: Plan) -> Factors:
        key = plan_key(plan)
        if key in self._kept:
            return self._kept[key]
        if key not in self._last:
            self._last = {}  # freed before there are others
            self._last = {key: self._make(plan)}
        return self._last[key]

    def keep(self) -> None:
        """Keep the last plan's pairs instead of those that were kept before."""
        self._kept, self._last = self._last, {}


def _scorer(
    model: PreTrainedModel | PrunableModel,
    tokenizer: PreTrainedTokenizerBase,
    result: SearchResult,
    task: Task,
    seed: int,
    pairs: _Pairs,
    journal: Journal | None,
) -> Callable[[Plan, str], Scores]:
    """(plan, split) → scores of what is stored of its refitted pairs."""
    splits = task.splits(seed)

    def scored(plan: Plan, split: str) -> Scores:
        def measure() -> Scores:
            with pairs(plan).stored(model, plan):
                return evaluate(model.model, tokenizer, task, splits[split])

        scores = remembered(journal, f"refitted on {split}: {plan_key(plan)}", measure)
        progress.say(
            f"  {plan.prunable_removed(result.matrices):6.1%} removed, refitted: {split} accuracy "
            f"{scores.accuracy:.3f}, dense {result.dense[split].accuracy:.3f}"
        )
        return scores

    return scored
