"""Which of the candidates that a search offers is taken, by the validation scores of their stored form.

A search scores candidates as leading parts of nested factors. Pivoted, refitted and rounded they are the same maps only
up to rounding, which can change answers; so what is confirmed is the form that `sieve.apply_` leaves in the model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sieve.compression.plan import Plan
from sieve.errors import ToleranceError
from sieve.evaluation.scoring import Scores
from sieve.searchers.margin import describe, selection_margin
from sieve.searchers.problem import Candidate, SearchProblem, within
from sieve.utils import progress


@dataclass(frozen=True)
class Confirmed:
    """The candidate that was taken.

    winner: as the search scored it, on the fitness split.
    validation: scores of its stored form on the validation split.
    tried: every plan that validation was asked about, with those scores, in order.
    margin: by which the tolerance had to be kept on either split.
    """

    winner: Candidate
    validation: Scores
    tried: list[Candidate]
    margin: float = 0.0


def confirm(
    problem: SearchProblem,
    offered: Iterable[Candidate],
    stored: Callable[[Plan], Scores],
    dense: Scores,
    margin: bool = False,
) -> Confirmed:
    """The first candidate whose stored form is within the tolerance; where a size is asked for, the best of all.

    Args:
        offered: by the search, the one that it would choose first.
        stored: plan → scores of its stored form on the validation split.
        dense: the dense model's on that split.
        margin: correct the tolerance for the choice among many (`selection_margin`).

    Raises: ToleranceError naming the nearest where none passes.
    """
    by_size = problem.options.kept is not None
    tried: list[Candidate] = []
    taken: tuple[Candidate, Scores] | None = None
    for number, candidate in enumerate(offered):
        # The margin depends on all candidates that were scored, and so is known only when the first one is offered.
        if margin and not by_size:
            if number == 0:
                problem.margin = selection_margin(problem, len(dense.score))
                progress.say(describe(problem.evaluated, problem.margin, problem.tolerance * problem.dense.accuracy))
            if not problem.accepts(candidate):
                continue
        # Ask the validation split. A tolerance takes the first that passes, a size the best of all.
        scores = stored(candidate.plan)
        tried.append(Candidate(candidate.plan, scores))
        if by_size:
            better = taken is None or validation_key(scores) > validation_key(taken[1])
            verdict = "the best yet" if better else "no better"
        else:
            better = within(scores, dense, problem.tolerance, problem.confident, problem.margin)
            verdict = "confirmed" if better else "not confirmed, next larger"
        removed = candidate.plan.prunable_removed(problem.matrices)
        progress.say(
            f"  {removed:6.1%} removed, as it is stored: validation accuracy {scores.accuracy:.3f}, "
            f"dense {dense.accuracy:.3f}: {verdict}"
        )
        if better:
            taken = candidate, scores
            if not by_size:
                break
    if taken is None:
        raise ToleranceError(_nearest(problem, tried, dense))
    return Confirmed(*taken, tried, problem.margin)


def validation_key(scores: Scores) -> tuple[float, float]:
    """What validation chooses by: the score, which a search by likelihoods has not looked at, and then likelihoods."""
    return scores.accuracy, float(scores.ranking_score.mean())


def _nearest(problem: SearchProblem, tried: list[Candidate], dense: Scores) -> str:
    """Why no candidate was taken, and how near the best one came: on the validation split if any got so far."""
    candidates, reference, split = (
        (tried, dense, "validation") if tried else (problem.evaluated, problem.dense, "fitness")
    )
    best = max(candidates, key=lambda candidate: candidate.scores.accuracy, default=None)
    if best is None:
        return "every level of every matrix is dense at this --rank-multiple: choose a smaller one"
    floor = (1 - problem.tolerance) * reference.accuracy + problem.margin
    passed = f"none of the {len(tried)} candidates passed validation" if tried else "no candidate reached it"
    return (
        f"no pruned model has an accuracy of at least {floor:.3f} on {split} data ({passed}); nearest: "
        f"{best.plan.prunable_removed(problem.matrices):.1%} removed at {best.scores.accuracy:.3f}. "
        "Raise --tolerance or --calibration-tokens"
    )
