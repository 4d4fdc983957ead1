"""A search from start to confirmed winner."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve import progress
from sieve.apply import sliced
from sieve.errors import InputError, ToleranceError
from sieve.fitness import Scores, evaluate
from sieve.fitness.intervals import Resolution, resolution
from sieve.matrices import prunable
from sieve.plan import Matrix, Plan
from sieve.projections import Factors
from sieve.searchers.problem import Candidate, Problem, within
from sieve.searchers.uniform import uniform
from sieve.tasks import Task, load_task

# A searcher yields candidates that the fitness split accepts, the one it would choose first.
SEARCHERS: dict[str, Callable[[Problem], Iterator[Candidate]]] = {"uniform": uniform}


@dataclass(frozen=True)
class SearchResult:
    """The confirmed plan and how it was found.

    dense, pruned: scores by split ("fitness", "validation").
    evaluated: every candidate the search scored, in order.
    validation_attempts: how many candidates the validation split was asked about.
    resolution: how fine a difference the fitness split can tell.
    """

    plan: Plan
    matrices: dict[str, Matrix]
    dense: dict[str, Scores]
    pruned: dict[str, Scores]
    evaluated: list[Candidate]
    validation_attempts: int
    resolution: Resolution


def search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: Factors,
    task: str | Path | Task,
    tolerance: float = 0.05,
    search: str = "uniform",
    **options,
) -> Plan:
    """The smallest plan whose task accuracy stays within `tolerance` of the dense model's.

    Chosen on the task's fitness split and confirmed on its validation split; the test split is not touched.
    The model is dense again afterwards. Options are those of `run_search`, which also tells how it got there.

    Raises: InputError for bad arguments, ToleranceError when no pruned model is good enough.

    Example:
        >>> plan = sieve.search(model, tokenizer, factors, "geography", tolerance=0.05)
        >>> plan["model.layers.0.mlp.down_proj"]
        96
    """
    return run_search(model, tokenizer, factors, task, tolerance, search, **options).plan


def run_search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: Factors,
    task: str | Path | Task,
    tolerance: float = 0.05,
    search: str = "uniform",
    *,
    confident: bool = False,
    rank_multiple: int | None = None,
    seed: int = 0,
) -> SearchResult:
    """`search`, with everything it learned.

    Args:
        tolerance: ε in [0, 1), relative: accuracy ≥ (1 - ε) · dense accuracy.
        search: a name in `SEARCHERS`.
        confident: demand the lower end of the paired 95 % interval instead of the mean.
        rank_multiple: ranks are rounded up to it; 8 on CPU and 32 on GPU unless given.
        seed: of the task's splits and of the search.
    """
    check_options(tolerance, search)
    task = load_task(task)
    splits = task.splits(seed)
    matrices = prunable(model, factors.pivoted)
    factors.check(matrices, {})
    multiple = rank_multiple or (8 if model.device.type == "cpu" else 32)

    def score(split: str) -> Scores:
        return evaluate(model, tokenizer, task, splits[split])

    progress.say("  the dense model")
    dense = {"fitness": score("fitness")}
    limits = resolution(dense["fitness"].score, tolerance)
    if not limits.sufficient:
        progress.say(f"  [yellow]note:[/] {limits}")
    with sliced(model, factors) as slices:

        def score_plan(plan: Plan) -> Scores:
            slices.set(plan)
            removed = plan.prunable_removed(matrices)
            scores = score("fitness")
            progress.say(
                f"  {removed:6.1%} removed: accuracy {scores.accuracy:.3f}, dense {dense['fitness'].accuracy:.3f}"
            )
            return scores

        problem = Problem(
            matrices, score_plan, dense["fitness"], tolerance, confident, rank_multiple=multiple, seed=seed
        )
        attempts = 0
        for candidate in SEARCHERS[search](problem):
            attempts += 1
            if attempts == 1:
                slices.set({})
                dense["validation"] = score("validation")
            slices.set(candidate.plan)
            validation = score("validation")
            removed = candidate.plan.prunable_removed(matrices)
            accepted = within(validation, dense["validation"], tolerance, confident)
            progress.say(
                f"  {removed:6.1%} removed: validation accuracy {validation.accuracy:.3f}, "
                f"dense {dense['validation'].accuracy:.3f}: {'confirmed' if accepted else 'not confirmed, next larger'}"
            )
            if accepted:
                pruned = {"fitness": candidate.scores, "validation": validation}
                plan = Plan(candidate.plan, pivoted=factors.pivoted)
                return SearchResult(plan, matrices, dense, pruned, problem.evaluated, attempts, limits)
    raise ToleranceError(_nearest(problem, attempts))


def check_options(tolerance: float, search: str) -> None:
    """InputError for a tolerance outside [0, 1) or an unknown searcher."""
    if not 0 <= tolerance < 1:
        raise InputError(f"the tolerance must be in [0, 1), got {tolerance}: 0.05 means 5 % of the dense accuracy")
    if search not in SEARCHERS:
        raise InputError(f"unknown search {search!r}: choose one of {', '.join(SEARCHERS)}")


def _nearest(problem: Problem, attempts: int) -> str:
    best = max(problem.evaluated, key=lambda candidate: candidate.scores.accuracy, default=None)
    if best is None:
        return "every level of every matrix is dense at this --rank-multiple: choose a smaller one"
    floor = (1 - problem.tolerance) * problem.dense.accuracy
    where = f"none of the {attempts} candidates passed validation" if attempts else "no candidate reached it"
    return (
        f"no pruned model has an accuracy of at least {floor:.3f} ({where}); nearest: "
        f"{best.plan.prunable_removed(problem.matrices):.1%} removed at {best.scores.accuracy:.3f} on fitness data. "
        "Raise --tolerance or --calibration-tokens"
    )
