"""A search from start to confirmed winner."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.calibration.text import Sample, fingerprint
from sieve.compression.plan import Plan
from sieve.compression.space import CompressionSpace, Elastic
from sieve.errors import InputError
from sieve.evaluation.confidence import Resolution, resolution
from sieve.evaluation.likelihood import cells_of_a_pass
from sieve.evaluation.scoring import Prepared, Scores
from sieve.models.matrix import DENSE, Matrix
from sieve.models.prunable_model import PrunableModel
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.algorithms.budget import smaller
from sieve.searchers.bottlenecks import Bottleneck, bottlenecks
from sieve.searchers.config import Options, check_tolerance
from sieve.searchers.confirm import confirm
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.engine.engine import Engine, batching, split_into_rungs
from sieve.searchers.engine.journal import Journal
from sieve.searchers.engine.ray_workers import require_workers
from sieve.searchers.engine.remembered import plan_key, remembered
from sieve.searchers.goal import GoalConfig
from sieve.searchers.identity import options_identity, search_identity
from sieve.searchers.objective import SizeOf, measure_together, predicted_seconds, size_of
from sieve.searchers.problem import Candidate, SearchProblem, within
from sieve.searchers.reach import multiple_for
from sieve.searchers.recorded import dense_once, layer_times_once, predicted_losses_once
from sieve.searchers.scorer import Fitness, Scorer
from sieve.searchers.signal import DECIDING
from sieve.tasks import Task, load_task
from sieve.utils import progress
from sieve.utils.messages import listed
from sieve.utils.options import options_of

_BACKWARD = 3  # a forward and a backward pass cost as much as so many forward ones


@dataclass(frozen=True)
class SearchResult:
    """The confirmed plan and how it was found.

    dense, pruned: scores by split ("fitness", "validation"); `pruned` are those of the plan's stored form, the same
        bits as `sieve.evaluate` gives after `sieve.apply_`.
    evaluated: every candidate that the search scored on all fitness examples, in order, at ranks of the nested factors.
    tried: the plans that validation was asked about and what it said of their stored form, in order.
    resolution: how fine a difference the fitness split can tell.
    cost: what the candidates cost and would have cost (`Cost.summary`), and the bytes that shared states took at most.
    rank_correlation: Spearman's, of the surrogate's predictions (made before each evaluation) with the losses that were
        measured on the first rung of the fitness examples; a mean over generations.
    bottlenecks: of the searches that vary matrices one by one, else None.
    smaller: plans that go on from `plan` to ever smaller sizes, the smallest first: what a refit may reach.
    unpredicted: matrices that were left dense, as the answers have no gradient there.
    margin: by which the tolerance was kept on either split, in units of the score.
    layer_seconds: of the objective "latency": what all searched layers take by the table, "dense" and "pruned".
    """

    plan: Plan
    matrices: dict[str, Matrix]
    dense: dict[str, Scores]
    pruned: dict[str, Scores]
    evaluated: list[Candidate]
    tried: list[Candidate]
    resolution: Resolution
    cost: dict[str, Any]
    rank_correlation: float | None = None
    bottlenecks: list[Bottleneck] | None = None
    smaller: Sequence[Plan] = ()
    unpredicted: tuple[str, ...] = ()
    margin: float = 0.0
    layer_seconds: dict[str, float] | None = None

    @property
    def validation_attempts(self) -> int:
        """How many candidates the validation split was asked about."""
        return len(self.tried)


def layer_seconds(model: PreTrainedModel, result: SearchResult) -> float | None:
    """What the layers take whose times the search predicted (`SearchResult.layer_seconds`), if it did."""
    return None if result.layer_seconds is None else measure_together(model, result.matrices.values())


def search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: CompressionSpace,
    task: str | Path | Task,
    tolerance: float = 0.05,
    search: str | None = None,
    **options,
) -> Plan:
    """The smallest plan whose task accuracy stays within `tolerance` of the dense model's.

    Chosen on the task's fitness split and confirmed on its validation split, in the very form that `sieve.apply_` gives
    it (pivoted, rounded to the model's dtype): evaluated on that split after `apply_`, the model scores the same to the
    last bit. The test split is not touched. The model is dense again afterwards.
    Options are those of `run_search`, which also tells how it got there.

    Raises: InputError for bad arguments, ToleranceError when no pruned model is good enough.

    Example:
        >>> plan = sieve.search(model, tokenizer, factors, "geography", tolerance=0.05, search="ga")
        >>> plan["model.layers.0.mlp.down_proj"]
        96
    """
    return run_search(model, tokenizer, factors, task, tolerance, search, **options).plan


def run_search(
    model: PreTrainedModel | PrunableModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: CompressionSpace,
    task: str | Path | Task,
    tolerance: float = 0.05,
    search: str | None = None,
    *,
    confident: bool = False,
    margin: bool = False,
    rank_multiple: int | None = None,
    seed: int = 0,
    matrices: Sequence[str] | None = None,
    fitness: Fitness | None = None,
    journal: str | Path | None = None,
    dense: Mapping[str, Scores] | None = None,
    allow_no_signal: bool = False,
    generated: Sequence[Sample] = (),
    **options,
) -> SearchResult:
    """`search`, with everything it learned.

    Args:
        tolerance: ε in [0, 1), relative: accuracy ≥ (1 - ε) · dense accuracy.
        search: a name in `sieve.searchers.algorithms.base.SEARCHERS`; None for the default of what `factors` are.
        confident: demand the lower end of the paired 95 % interval instead of the mean.
        margin: correct the tolerance for the luck of the choice among many candidates (`sieve.searchers.margin`).
        rank_multiple: ranks are rounded up to it; 8 on CPU and 32 on GPU unless given.
        seed: of the task's splits and of the search.
        matrices: names of those that may be pruned; the others stay dense.
        fitness: scores instead of the task's own: (model, examples) → one number per example, larger is better.
            The model is any candidate, in the end in the form in which it would be stored; the examples are those of
            the split that is asked about.
        journal: file that keeps every evaluation; a search begun again with it goes on where it was.
        dense: the dense model's scores on the fitness and validation splits (`dense_scores`), where they are known.
        allow_no_signal: search although the dense model scores 0, so that every candidate is within the tolerance.
            Whether its scores are better than chance and the most frequent answer is said before the first candidate.
        generated: texts that the model generated (`Statistics.generated`), to predict losses on beside the task's rows.
        options: fields of `Options` and of `EngineConfig`.
    """
    # What cannot work is refused before anything is read.
    engine_config = EngineConfig(**{name: options.pop(name) for name in options_of(EngineConfig) if name in options})
    choices = Options(**options)
    searcher = searcher_named(search or factors.traits.default_searcher)
    check_tolerance(tolerance)
    searcher.check(choices, engine_config, factors.traits)
    GoalConfig(confident=confident, margin=margin).check(choices.kept)
    require_workers(engine_config.workers)

    # What is asked: the examples, the matrices, and how a model is scored.
    task = load_task(task)
    splits = task.splits(seed)
    prunable, model = PrunableModel.of(model), PrunableModel.of(model).model
    every = factors.matrices(prunable)
    factors.check(every, {})
    chosen = _chosen(every, matrices)
    multiple = multiple_for(model.device, rank_multiple)
    scorer = Scorer(model, tokenizer, task, fitness)

    recipe = {
        "search": searcher.name, "tolerance": tolerance, "confident": confident, "rank_multiple": multiple,
        "seed": seed, "matrices": sorted(chosen), "own fitness": fitness is not None,
        **options_identity(choices, engine_config),
    }  # fmt: skip
    if generated:
        recipe["generated"] = fingerprint(generated)

    with ExitStack() as stack:
        book = None
        if journal is not None:
            identity = search_identity(model, tokenizer, factors, task, splits, recipe)
            book = stack.enter_context(Journal(journal, identity))

        # The dense model: what candidates are compared with.
        reference = dense_once(book, lambda: scorer.dense_scores(splits, dense, allow_no_signal))
        scorer.require_signal(reference, allow_no_signal)
        limits = _require_attainable(reference, tolerance, confident, choices)

        # What is known of every rank before a candidate is scored: its size and, where it can be predicted, its loss.
        curves, probed = None, 0
        if choices.surrogate and searcher.per_matrix and factors.traits.predictable:
            originals = factors.only(chosen)
            curves, probed = predicted_losses_once(
                book, model, tokenizer, originals, task, splits["calibration"], generated
            )
        sizes = size_of(choices.objective, model.dtype, layer_times_once(book, model, chosen, choices.objective))
        timed = chosen if choices.objective == "latency" else None
        unpredicted = tuple(name for name, curve in (curves or {}).items() if not curve.any())
        if unpredicted:
            chosen, choices = _without(unpredicted, chosen, choices, sizes)

        # The engine, which scores candidates. Where all matrices have one rank, candidates have nothing in common.
        elastic = stack.enter_context(factors.elastic(prunable))
        examples = split_into_rungs(splits["fitness"]) if searcher.per_matrix else [splits["fitness"]]
        engine_config = replace(engine_config, layers=engine_config.layers and searcher.per_matrix)
        # A pass of a candidate batch is as large as one of a single model.
        batch = batching(model.device)
        several = batch["candidate_batch_size"] if hasattr(elastic, "set_batch") else 1
        prepared = [scorer.prepare(rung, cells_of_a_pass(model.device) // several) for rung in examples]
        engine = Engine(model, elastic, chosen, prepared, engine_config, journal=book, **batch)
        engine.cost.probed(_BACKWARD * probed * len(engine.blocks))
        stack.enter_context(engine.running())

        # The search, and what the validation split says of the candidates that it offers, in their stored form.
        score = _reported(engine, every, reference["fitness"])
        problem = SearchProblem(
            chosen, score, reference["fitness"], tolerance, confident, multiple, seed, engine, curves, choices, sizes
        )
        deciding = {split: scorer.prepare(splits[split]) for split in DECIDING}
        stored = _StoredScores(prunable, factors, elastic, deciding, book)
        offered = searcher.run(problem)
        found = confirm(problem, offered, lambda plan: stored(plan, "validation"), reference["validation"], margin)
        plan = found.winner.plan
        fitness_scores = stored(plan, "fitness")
        tested = bottlenecks(problem, found.winner) if choices.bottlenecks and searcher.per_matrix else None
        return SearchResult(
            Plan(plan, pivoted=factors.pivoted), every, reference,
            {"fitness": fitness_scores, "validation": found.validation}, problem.evaluated, found.tried, limits,
            engine.cost.summary() | {"states_peak_bytes": engine.peak_bytes}, problem.rank_correlation, tested,
            smaller(problem, plan), unpredicted, found.margin, timed and predicted_seconds(sizes, timed, plan),
        )  # fmt: skip


def _chosen(every: dict[str, Matrix], names: Sequence[str] | None) -> dict[str, Matrix]:
    if names is None:
        return every
    unknown = [name for name in names if name not in every]
    if unknown or not names:
        raise InputError(
            f"{unknown[0] if unknown else 'nothing'} is not a prunable matrix: see sieve.models.linears.prunable"
        )
    return {name: every[name] for name in every if name in set(names)}


def _without(
    names: Sequence[str], chosen: dict[str, Matrix], choices: Options, sizes: SizeOf
) -> tuple[dict[str, Matrix], Options]:
    """The matrices without those that have no predicted loss, and options that ask the others for what is asked of all.

    The user is told.
    """
    progress.note(
        f"{listed(names, 4)}: the answers have no gradient there, so nothing is known of what less rank "
        "would cost: left dense. --search uniform and --no-surrogate prune them"
    )
    rest = {name: matrix for name, matrix in chosen.items() if name not in names}
    if choices.kept is None:
        return rest, choices
    total, free = (sum(sizes(matrix, DENSE) for matrix in some.values()) for some in (chosen, rest))
    kept = 1 - (1 - choices.kept) * total / free
    if kept <= 0:
        raise InputError(
            f"--kept {choices.kept} is not reached without these matrices: raise it, or use --search uniform"
        )
    return rest, replace(choices, kept=kept)


@dataclass(frozen=True)
class _StoredScores:
    """(plan, split) → scores of what `apply_` makes of the plan, from the journal where that has them.

    elastic: what runs candidates now; inside a call it is dense. prepared: the examples by split.
    """

    model: PrunableModel
    factors: CompressionSpace
    elastic: Elastic
    prepared: Mapping[str, Prepared]
    journal: Journal | None

    def __call__(self, plan: Plan, split: str) -> Scores:
        def measure() -> Scores:
            self.elastic.set_plan({})
            with self.factors.stored(self.model, plan):
                return self.prepared[split].run(self.model.model)

        return remembered(self.journal, f"stored on {split}: {plan_key(plan)}", measure)


def _reported(engine: Engine, matrices: dict[str, Matrix], dense: Scores) -> Callable[[Plan], Scores]:
    """Plan → its scores on all of the fitness split, which the user is told."""

    def score(plan: Plan) -> Scores:
        scores = engine.full(plan)
        progress.say(
            f"  {plan.prunable_removed(matrices):6.1%} removed: accuracy {scores.accuracy:.3f}, "
            f"dense {dense.accuracy:.3f}"
        )
        return scores

    return score


def _require_attainable(dense: Mapping[str, Scores], tolerance: float, confident: bool, choices: Options) -> Resolution:
    """What the fitness split can tell of the tolerance; a note where that is too little. None where a size is given.

    Raises: InputError where even the dense model misses the tolerance.
    """
    limits = resolution(dense["fitness"].score, tolerance)
    if choices.kept is not None:
        return limits
    for split, scores in dense.items():
        if not within(scores, scores, tolerance, confident):
            raise InputError(
                f"even the dense model misses the tolerance on the {split} split: it scores {scores.accuracy:.3f}, "
                f"and a tolerance of {tolerance} asks for {(1 - tolerance) * scores.accuracy:.3f}. Scores must not be "
                "negative"
            )
        if scores.accuracy <= 0:
            progress.note(f"the dense model scores 0 on the {split} split: every model is as good")
    if not limits.sufficient:
        progress.note(str(limits))
    return limits
