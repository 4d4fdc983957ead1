"""What a searcher is given: the matrices, a way to score a plan, and what counts as good enough."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sieve.fitness import Scores
from sieve.fitness.intervals import paired
from sieve.plan import Matrix, Plan


@dataclass(frozen=True)
class Candidate:
    """A plan and its scores on the fitness split."""

    plan: Plan
    scores: Scores


@dataclass
class Problem:
    """The smallest plan whose score stays within the tolerance of the dense model's.

    matrices: what may be pruned.
    score: plan → scores on the fitness split (per-example, so that candidates can be compared in pairs).
    dense: the dense model's scores on the same examples.
    tolerance: ε in [0, 1): a plan is good enough when its accuracy is at least (1 - ε) of the dense one's.
    confident: ask that of the lower end of the paired 95 % interval instead of the mean.
    rank_multiple: ranks are whole multiples of this.
    seed: for searchers that draw at random.
    """

    matrices: dict[str, Matrix]
    score: Callable[[Plan], Scores]
    dense: Scores
    tolerance: float
    confident: bool = False
    rank_multiple: int = 8
    seed: int = 0
    evaluated: list[Candidate] = field(default_factory=list)

    def evaluate(self, plan: Plan) -> Candidate:
        """Score a plan; the same plan is never scored twice."""
        for candidate in self.evaluated:
            if candidate.plan == plan:
                return candidate
        self.evaluated.append(Candidate(plan, self.score(plan)))
        return self.evaluated[-1]

    def accepts(self, candidate: Candidate) -> bool:
        return within(candidate.scores, self.dense, self.tolerance, self.confident)


def within(scores: Scores, dense: Scores, tolerance: float, confident: bool = False) -> bool:
    """Whether accuracy ≥ (1 - ε) · dense accuracy, by the mean or by the lower end of the paired interval."""
    floor = (1 - tolerance) * dense.score
    if confident:
        return paired(scores.score, floor).low >= 0
    # The comparison is of sums of the same few values: allow for their rounding.
    return scores.score.sum() >= floor.sum() - 1e-9
