"""What the genetic searches have in common: judging, seeding, screening and ruling out candidates.

pymoo selects and recombines (`ask`), we evaluate, and hand back the candidates that were not ruled out (`tell`).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem
from pymoo.problems.static import StaticProblem

from sieve.compression.plan import Plan
from sieve.evaluation.scoring import Scores
from sieve.searchers.algorithms.allocate import allocate
from sieve.searchers.genome import LEVELS
from sieve.searchers.problem import Candidate, SearchProblem, within
from sieve.searchers.reach import STEPS
from sieve.searchers.successive_halving import successive_halving
from sieve.searchers.surrogate import Surrogate, rank_correlation
from sieve.utils import progress

PROPOSALS = 4  # offspring that the surrogate chooses one from
_ENOUGH = 4  # candidates of one call that have a rank correlation
_NEAR = 0.85  # of the dense score: from here on the line from ranking_score to score has to be right
_FINALISTS = 3  # that validation chooses among, with the allocation that the search began with
_STEP_BACK = 0.01  # of the prunable parameters: the least by which the next candidate for validation is larger


class Evolution:
    """The state of one genetic search: what was evaluated, and how candidates are judged.

    A candidate's value is the score that its likelihoods (`Scores.ranking_score`) let one expect, by a line through the
    seeds: of two similar candidates, a few hundred right and wrong answers cannot tell the better one, likelihoods can.
    What counts as good enough in the end is the score itself; where the seeds show no such line, it is all there is.
    """

    def __init__(self, problem: SearchProblem, kept: Sequence[float] = LEVELS, smooth: bool = True):
        self.problem, self.options = problem, problem.options
        self.genome = problem.genome(kept)
        problem.require_reachable(self.genome.size(self.genome.dense * 0))
        self.surrogate = None if problem.curves is None else Surrogate(self.genome, problem.curves)
        self.draw = np.random.default_rng(problem.seed)
        self.scored: dict[bytes, tuple[np.ndarray, Scores]] = {}
        self._smooth, self._line = smooth, (0.0, 1.0) if smooth and self.options.kept is not None else None
        self._correlations: list[tuple[int, float]] = []
        # The allocation that `budget` would take: later ones go by losses that the fitness examples have corrected.
        self._begun = None if self.options.kept is None else self.sized(self.options.kept)[0]

    # Judging

    def value(self, scores: Scores) -> np.ndarray:
        """Per example [N]; the mean is on the scale of the task's score.

        Where a size is asked for, it is the ranking_score itself: nothing has to be weighed against sizes then.
        """
        if self._line is None:
            return scores.score
        offset, slope = self._line
        return offset + slope * scores.ranking_score

    def fit_score_calibration(self) -> None:
        """Draw the line from ranking_score to score through what is evaluated so far; once, so that values last."""
        if self._line is not None:
            return
        dense = self.problem.dense
        pairs = [(scores.ranking_score.mean(), scores.accuracy) for scores in (dense, *self._evaluated())]
        near = [pair for pair in pairs if pair[1] >= _NEAR * dense.accuracy]
        for these in (near, pairs) if self._smooth else ():
            x, y = np.array(these).T
            slope = float(np.cov(x, y)[0, 1] / x.var(ddof=1)) if len(set(x)) > 2 else 0.0
            if slope > 0:  # few near ones may be noise
                self._line = float(y.mean() - slope * x.mean()), slope
                return

    def relative_size(self, levels: np.ndarray) -> float:
        """Size relative to the dense model's, in (0, 1]."""
        return self.genome.size(levels) / self.genome.size(self.genome.dense)

    def expected(self, levels: np.ndarray) -> float:
        """The value that the surrogate expects."""
        ranking_score = self.problem.dense.ranking_score.mean() - self.surrogate.loss(levels)
        if self._line is None:
            return ranking_score
        return self._line[0] + self._line[1] * ranking_score

    # Evaluating

    def evaluate(
        self,
        candidates: Sequence[np.ndarray],
        utility: Callable[[np.ndarray, float], float] = lambda levels, mean: 1.0,
        keep: int | None = None,
    ) -> dict[int, Scores]:
        """Full scores, by index, of the candidates that could not be ruled out (`successive_halving`)."""
        plans = [self.genome.plan(levels) for levels in candidates]
        guesses = [self.surrogate.loss(levels) if self.surrogate else 0.0 for levels in candidates]
        known = [self.problem.dense, *self._evaluated()[-64:]]
        results, begun = successive_halving(
            self.problem.engine, plans, self.value, lambda index, mean: utility(candidates[index], mean), known, keep,
            racing=self.options.racing and not self.options.paper,
        )  # fmt: skip
        for index, scores in results.items():
            key = candidates[index].tobytes()
            if key not in self.scored:
                self.scored[key] = candidates[index], scores
                self.problem.add(plans[index], scores)
        if self.surrogate and self.scored:
            # Predictions are judged on the first rung, which all candidates were asked: those that stayed on differ too
            # little. And among candidates of one call: other calls' predictions were made with other weights.
            found = rank_correlation(guesses, [-scores.ranking_score.mean() for scores in begun])
            if found is not None and len(guesses) >= _ENOUGH:
                self._correlations.append((len(guesses), found))
                total = sum(number for number, _ in self._correlations)
                self.problem.rank_correlation = sum(number * rho for number, rho in self._correlations) / total
            self.surrogate.fit([levels for levels, _ in self.scored.values()], self._losses())
        return results

    def screen(self, candidates: Sequence[np.ndarray], number: int, utility: Callable[[np.ndarray, float], float]):
        """Indices of the `number` candidates that the surrogate expects most of."""
        if self.surrogate is None or len(candidates) <= number:
            return list(range(len(candidates)))[:number]
        self.problem.engine.cost.screened += len(candidates) - number
        order = sorted(range(len(candidates)), key=lambda i: (-utility(candidates[i], self.expected(candidates[i])), i))
        return sorted(order[:number])

    def _losses(self) -> list[float]:
        dense = self.problem.dense.ranking_score.mean()
        return [float(dense - scores.ranking_score.mean()) for scores in self._evaluated()]

    def _evaluated(self) -> list[Scores]:
        return [scores for _, scores in self.scored.values()]

    # Seeding

    def sized(self, share: float) -> list[np.ndarray]:
        """Candidates of one size: uniform levels, the allocation by predicted loss, and the mean of both."""
        size = share * self.genome.size(self.genome.dense)
        even = self.fit(self._even(share), size)
        if self.surrogate is None:
            return [even]
        best = allocate(self.genome, self.surrogate, size)
        return [best, even, self.fit((best + even + 1) // 2, size)]

    def fit(self, levels: np.ndarray, size: float) -> np.ndarray:
        """The levels, lowered where it is cheapest until they have the size."""
        if self.genome.size(levels) <= size:
            return levels
        if self.surrogate is not None:
            return allocate(self.genome, self.surrogate, size, levels)
        levels = levels.copy()
        while self.genome.size(levels) > size and levels.any():
            levels[levels.argmax()] -= 1
        return levels

    def _even(self, share: float) -> np.ndarray:
        return self.genome.nearest(Plan.uniform(self.problem.matrices.values(), share, self.problem.rank_multiple))

    # Running

    def run(
        self,
        algorithm: GeneticAlgorithm,
        objectives: Callable[[np.ndarray, float], Sequence[float]],
        utility: Callable[[np.ndarray, float], float],
        offspring: int,
        generations: int,
        keep: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Evolve until generations or budget are spent.

        Args:
            objectives: (levels, mean value) → what pymoo minimises.
            utility: (levels, mean value) → positive where a candidate can still be of use; larger is better.
            keep: see `successive_halving`.
        """
        # pymoo only proposes and selects; when to end is decided here.
        upper = self.genome.bounds - 1
        algorithm.setup(
            PymooProblem(
                n_var=len(self.genome), n_obj=len(objectives(self.genome.dense, 0.0)), xl=0, xu=upper, vtype=int
            ),
            termination=("n_gen", 10**9),
            seed=self.problem.seed,
        )
        for generation in range(generations + 1):
            engine = self.problem.engine
            if generation and self.options.budget is not None and engine.nominal >= self.options.budget:
                progress.say(f"  the budget of {self.options.budget:,} layer-tokens is spent")
                break
            # Ask for candidates. The first generation is the seeds; of later ones the most promising are evaluated.
            asked = algorithm.ask()
            if asked is None or not len(asked):
                break
            candidates = [np.asarray(levels, dtype=np.int64) for levels in asked.get("X")]
            if generation:
                chosen = self.screen(candidates, offspring, utility)
                results = self.evaluate([candidates[index] for index in chosen], utility, keep)
            else:
                chosen = list(range(len(candidates)))
                results = self.evaluate(candidates)
            # Tell of those that were evaluated on all examples; states of others are of no use any more.
            stayed = sorted(results)
            if stayed:
                told = Population.create(*[asked[chosen[index]] for index in stayed])
                F = [objectives(candidates[chosen[index]], self.mean(results[index])) for index in stayed]
                Evaluator().eval(StaticProblem(algorithm.problem, F=np.array(F, dtype=float)), told)
                algorithm.tell(infills=told)
                engine.retain([self.genome.plan(one.X) for one in algorithm.pop])
            self._say(generation, len(chosen), len(stayed))
            if stop():
                break

    def mean(self, scores: Scores) -> float:
        return float(self.value(scores).mean())

    def _say(self, generation: int, asked: int, stayed: int) -> None:
        cost = self.problem.engine.cost
        ratio = cost.plain_layer_tokens / max(cost.spent, 1)
        correlation = self.problem.rank_correlation
        guess = "" if correlation is None else f", surrogate ρ {correlation:.2f}"
        progress.say(
            f"  generation {generation}: {asked} candidates, {stayed} to the end; {len(cost.candidates)} in all at "
            f"1/{ratio:.0f} of the plain cost{guess}"
        )

    # Results

    def front(self) -> list[tuple[np.ndarray, Scores]]:
        """Evaluated candidates that no other is both smaller and better than, the smallest first."""
        found: list[tuple[np.ndarray, Scores]] = []
        ordered = sorted(self.scored.values(), key=lambda pair: (self.genome.size(pair[0]), -self.mean(pair[1])))
        for levels, scores in ordered:
            if not found or self.mean(scores) > self.mean(found[-1][1]):
                found.append((levels, scores))
        return found

    def is_feasible(self, scores: Scores) -> bool:
        """Whether the tolerance holds for the score, and for its mean with what the likelihoods let one expect.

        The latter because of hundreds of scores some are high by luck.
        """
        problem = self.problem
        fair = (scores.accuracy + self.mean(scores)) / 2
        fails_elsewhere = fair < (1 - problem.tolerance) * problem.dense.accuracy - 1e-12
        return within(scores, problem.dense, problem.tolerance, problem.confident) and not fails_elsewhere

    def winners(self) -> Iterator[Candidate]:
        """Acceptable candidates: along the front and beyond, the smallest first; or the best of the size asked for."""
        if self.options.kept is not None:
            yield from self._finalists()
            return
        front = [(levels, Candidate(self.genome.plan(levels), scores)) for levels, scores in self.front()]
        least = 0.0
        for levels, candidate in front:
            if self.is_feasible(candidate.scores) and self.relative_size(levels) >= least:
                least = self.relative_size(levels) + _STEP_BACK
                yield candidate
        yield from self._larger(
            least or max((self.relative_size(levels) for levels, _ in self.scored.values()), default=1.0)
        )

    def _finalists(self) -> Iterator[Candidate]:
        """The best of the size asked for, and the allocation by predicted loss, for validation to choose among.

        Of hundreds of candidates the best have much that only the fitness examples like; the allocation was not chosen
        by them. The paper knows no such choice.
        """
        fitting = filter(self.problem.accepts, self.problem.evaluated)
        ranked = sorted(fitting, key=lambda one: (-self.mean(one.scores), self.problem.size(one.plan)))
        if self.options.paper:
            yield ranked[0]
            return
        yield from ranked[:_FINALISTS]
        plan = self.genome.plan(self._begun)
        if all(plan != one.plan for one in ranked[:_FINALISTS]):
            (scores,) = self.evaluate([self._begun]).values()
            yield Candidate(plan, scores)

    def _larger(self, share: float) -> Iterator[Candidate]:
        """Acceptable candidates beyond the front, for where validation takes none of it: allocations that grow."""
        for step in range(int(share * STEPS) + 1, STEPS):
            levels = self.sized(step / STEPS)[0]
            if not self.genome.plan(levels):
                continue
            (scores,) = self.evaluate([levels]).values()
            if self.is_feasible(scores):
                yield Candidate(self.genome.plan(levels), scores)
