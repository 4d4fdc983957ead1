"""What a searcher is given: the matrices, a way to score a plan, and which plans are good enough."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sieve.compression.plan import Plan
from sieve.evaluation.confidence import paired
from sieve.evaluation.scoring import Scores
from sieve.models.matrix import DENSE, Matrix
from sieve.searchers.config import Options
from sieve.searchers.engine.engine import Engine
from sieve.searchers.genome import LEVELS, Genome
from sieve.searchers.objective import SizeOf, parameters
from sieve.searchers.reach import require_reachable
from sieve.utils import progress


@dataclass(frozen=True)
class Candidate:
    """A plan and its scores on the fitness split.

    layer_tokens: what the search had spent when they were known.
    uniform: whether the plan keeps one fraction of all matrices.
    """

    plan: Plan
    scores: Scores
    layer_tokens: int = field(default=0, compare=False)
    uniform: bool = field(default=False, compare=False)


@dataclass
class SearchProblem:
    """The smallest plan whose score stays within the tolerance of the dense model's, or the best of a given size.

    matrices: what may be pruned.
    score: plan → scores on the fitness split (per-example, so that candidates can be compared in pairs).
    dense: the dense model's scores on the same examples.
    tolerance: ε in [0, 1): a plan is good enough when its accuracy is at least (1 - ε) of the dense one's.
    confident: ask that of the lower end of the paired 95 % interval instead of the mean.
    rank_multiple: ranks are whole multiples of this.
    seed: for searchers that draw at random.
    engine: for searchers that compare many candidates.
    curves: predicted loss of each matrix at each rank (`sensitivity`); None where the surrogate is switched off.
    size_of: (matrix, rank) → what the search is to make small; parameters by default.
    margin: by how much of the score the tolerance must be kept (`selection_margin`), once the candidates are known.
    rank_correlation: a searcher's own, of predicted and true losses, once it is known.
    """

    matrices: dict[str, Matrix]
    score: Callable[[Plan], Scores]
    dense: Scores
    tolerance: float
    confident: bool = False
    rank_multiple: int = 8
    seed: int = 0
    engine: Engine | None = None
    curves: Mapping[str, np.ndarray] | None = None
    options: Options = field(default_factory=Options)
    size_of: SizeOf = parameters
    evaluated: list[Candidate] = field(default_factory=list)
    rank_correlation: float | None = None
    margin: float = 0.0

    def evaluate(self, plan: Plan) -> Candidate:
        """Score a plan; the same plan is never scored twice."""
        for candidate in self.evaluated:
            if candidate.plan == plan:
                return candidate
        return self.add(plan, self.score(plan))

    def add(self, plan: Plan, scores: Scores) -> Candidate:
        """Record a plan that was scored elsewhere, on all of the fitness split."""
        spent = 0 if self.engine is None else self.engine.cost.spent
        self.evaluated.append(Candidate(plan, scores, spent, self._is_uniform(plan)))
        measured = {"removed": plan.prunable_removed(self.matrices), "accuracy": scores.accuracy, "layer_tokens": spent}
        progress.measured({f"search/{name}": value for name, value in measured.items()}, len(self.evaluated))
        return self.evaluated[-1]

    def _is_uniform(self, plan: Plan) -> bool:
        levels = (Plan.uniform(self.matrices.values(), share, self.rank_multiple) for share in LEVELS)
        return any(all(plan.get(name, DENSE) == one.get(name, DENSE) for name in self.matrices) for one in levels)

    def accepts(self, candidate: Candidate) -> bool:
        """Whether the candidate is within the tolerance; where a size is asked for, whether it is that small."""
        if self.options.kept is not None:
            return self.size(candidate.plan) <= self.size_limit * (1 + 1e-9)  # seconds are sums of rounded numbers
        return within(candidate.scores, self.dense, self.tolerance, self.confident, self.margin)

    def genome(self, kept: Sequence[float] = LEVELS) -> Genome:
        """The genes that a search varies, at levels of these kept fractions."""
        return Genome(self.matrices, kept, self.rank_multiple, self.options.granularity, self.size_of)

    def size(self, plan: Mapping[str, int | str]) -> float:
        """Of the prunable matrices under a plan."""
        return sum(self.size_of(matrix, plan.get(name, DENSE)) for name, matrix in self.matrices.items())

    @property
    def size_limit(self) -> float:
        """The largest size that a plan may have."""
        return self.size({}) * (1 if self.options.kept is None else self.options.kept)

    def require_reachable(self, smallest: float) -> None:
        """InputError where even the smallest plan is larger than what is asked for."""
        require_reachable(self.options, smallest, self.size({}))


def within(scores: Scores, dense: Scores, tolerance: float, confident: bool = False, margin: float = 0.0) -> bool:
    """Whether accuracy ≥ (1 - ε) · dense accuracy + margin, by the mean or by the lower end of the paired interval."""
    floor = (1 - tolerance) * dense.score + margin
    if confident:
        return bool(paired(scores.score, floor).low >= 0)
    # The comparison is of sums of the same few values: allow for their rounding.
    return bool(scores.score.sum() >= floor.sum() - 1e-9)
