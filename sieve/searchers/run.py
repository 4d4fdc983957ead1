"""A search from start to confirmed winner."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.compression.plan import Plan
from sieve.compression.space import CompressionSpace
from sieve.errors import InputError
from sieve.evaluation.confidence import Resolution, resolution
from sieve.evaluation.scoring import Prepared, Scores, prepare
from sieve.models.loading import evaluating
from sieve.models.matrix import DENSE, Matrix
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.algorithms.budget import smaller
from sieve.searchers.bottlenecks import Bottleneck, bottlenecks
from sieve.searchers.config import Options, check_tolerance
from sieve.searchers.confirm import confirm
from sieve.searchers.engine.cuda_graphs import CudaRecorder
from sieve.searchers.engine.engine import Engine, rungs
from sieve.searchers.engine.journal import Journal
from sieve.searchers.engine.ray_workers import require_workers
from sieve.searchers.engine.remembered import from_record, plan_key, remembered, to_record
from sieve.searchers.objective import SizeOf, measure, size_of
from sieve.searchers.problem import Candidate, Problem, within
from sieve.searchers.reach import multiple_for
from sieve.searchers.sensitivity import EXAMPLES, sensitivity
from sieve.searchers.signal import DECIDING, dense_scores, require_signal
from sieve.tasks import Example, Task, load_task
from sieve.utils import progress
from sieve.utils.identity import identity_of
from sieve.utils.messages import listed

CANDIDATE_BATCH_SIZE = 8  # candidates of one forward pass on a GPU
_NAMES_OF_TASK = ("name", "description", "data", "file")
_BACKWARD = 3  # a forward and a backward pass cost as much as so many forward ones

# The user's own: (model, examples) → one number per example, larger is better.
Fitness = Callable[[PreTrainedModel, Sequence[Example]], Sequence[float]]


@dataclass(frozen=True)
class SearchResult:
    """The confirmed plan and how it was found.

    dense, pruned: scores by split ("fitness", "validation"); `pruned` are those of the plan's stored form, the same
        bits as `sieve.evaluate` gives after `sieve.apply_`.
    evaluated: every candidate the search scored on all fitness examples, in order, as slices of the factors.
    tried: the plans that validation was asked about and what it said of their stored form, in order.
    resolution: how fine a difference the fitness split can tell.
    cost: what the candidates cost and would have cost (`Cost.summary`), and the bytes that shared states took at most.
    rank_correlation: Spearman's, of the surrogate's predictions (made before each evaluation) with the losses that were
        measured on the first slice of the fitness examples; a mean over generations.
    bottlenecks: of the searches that vary matrices one by one, else None.
    smaller: plans that go on from `plan` to ever smaller sizes, the smallest first: what a refit may reach.
    unpredicted: matrices that were left dense, as the answers have no gradient there.
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

    @property
    def validation_attempts(self) -> int:
        """How many candidates the validation split was asked about."""
        return len(self.tried)


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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: CompressionSpace,
    task: str | Path | Task,
    tolerance: float = 0.05,
    search: str | None = None,
    *,
    confident: bool = False,
    rank_multiple: int | None = None,
    seed: int = 0,
    matrices: Sequence[str] | None = None,
    fitness: Fitness | None = None,
    journal: str | Path | None = None,
    dense: Mapping[str, Scores] | None = None,
    allow_no_signal: bool = False,
    **options,
) -> SearchResult:
    """`search`, with everything it learned.

    Args:
        tolerance: ε in [0, 1), relative: accuracy ≥ (1 - ε) · dense accuracy.
        search: a name in `sieve.searchers.algorithms.base.SEARCHERS`; None for the default of what `factors` are.
        confident: demand the lower end of the paired 95 % interval instead of the mean.
        rank_multiple: ranks are rounded up to it; 8 on CPU and 32 on GPU unless given.
        seed: of the task's splits and of the search.
        matrices: names of those that may be pruned; the others stay dense.
        fitness: scores in the place of the task's own: (model, examples) → one number per example, larger is better.
            The model is any candidate, in the end in the form in which it would be stored; the examples are those of
            the split that is asked about.
        journal: file that keeps every evaluation; a search begun again with it goes on where it was.
        dense: the dense model's scores on the fitness and validation splits (`dense_scores`), where they are known.
        allow_no_signal: search although the dense model scores 0, so that every candidate is within the tolerance.
            Whether its scores are better than chance and the most frequent answer is said before the first candidate.
        options: fields of `Options`.
    """
    choices = Options(**options)
    searcher = searcher_named(search or factors.traits.default_searcher)
    check_tolerance(tolerance)
    searcher.check(choices, factors.traits)
    require_workers(choices.workers)
    task = load_task(task)
    splits = task.splits(seed)
    every = factors.matrices(model)
    factors.check(every, {})
    chosen = _chosen(every, matrices)
    multiple = multiple_for(model.device, rank_multiple)

    def ready(examples: Sequence[Example]) -> Prepared:
        if fitness is not None:
            return Prepared(lambda model: _own(fitness, model, examples), 0, 0, fixed_passes=False)
        return prepare(model, tokenizer, task, examples)

    def measured() -> dict[str, Scores]:
        if fitness is None:
            return dense_scores(model, tokenizer, task, splits, allow_no_signal)
        with evaluating(model), torch.inference_mode():
            return {split: ready(splits[split]).run(model) for split in DECIDING}

    # Few candidates that have nothing in common: rungs, predictions and shared blocks would only cost.
    parts = rungs(splits["fitness"]) if searcher.per_matrix else [splits["fitness"]]
    identity = {} if journal is None else _identity(model, tokenizer, factors, task, splits, {
        "search": searcher.name, "tolerance": tolerance, "confident": confident, "rank_multiple": multiple,
        "seed": seed, "matrices": sorted(chosen), "own fitness": fitness is not None, **asdict(choices),
        "workers": choices.workers is not None,  # their number decides nothing
    })  # fmt: skip
    with ExitStack() as stack:
        book = None if journal is None else stack.enter_context(Journal(journal, identity))
        dense = _dense(book, measured if dense is None or fitness is not None else lambda given=dense: dict(given))
        for split in DECIDING if fitness is None else ():
            require_signal(dense[split], split, task, allow_no_signal)
        curves, probed = None, 0
        if choices.surrogate and searcher.per_matrix and factors.traits.predictable:
            originals, asked = factors.only(chosen), splits["calibration"][:EXAMPLES]
            curves, probed = _curves(book, lambda: sensitivity(model, tokenizer, originals, task, asked))
        sizes = size_of(choices.objective, model.dtype, _latencies(book, model, chosen, choices.objective))
        unpredicted = [name for name, curve in (curves or {}).items() if not curve.any()]
        if unpredicted:
            progress.note(
                f"{listed(unpredicted, 4)}: the answers have no gradient there, so nothing is known of what less rank "
                "would cost: left dense. --search uniform and --no-surrogate prune them"
            )
            chosen, choices = _without(unpredicted, chosen, choices, sizes)
        elastic = stack.enter_context(factors.elastic(model))
        engine = Engine(
            model, elastic, chosen, list(map(ready, parts)),
            replace(choices, layers=choices.layers and searcher.per_matrix), journal=book,
            candidate_batch_size=1 if model.device.type == "cpu" else CANDIDATE_BATCH_SIZE,
            recorder=CudaRecorder if model.device.type == "cuda" else None,
        )  # fmt: skip
        engine.cost.probed(_BACKWARD * probed * len(engine.blocks))
        stack.enter_context(engine.running())
        limits = resolution(dense["fitness"].score, tolerance)
        if not limits.sufficient and choices.kept is None:
            progress.note(str(limits))

        def score(plan: Plan) -> Scores:
            scores = engine.full(plan)
            progress.say(
                f"  {plan.prunable_removed(every):6.1%} removed: accuracy {scores.accuracy:.3f}, "
                f"dense {dense['fitness'].accuracy:.3f}"
            )
            return scores

        problem = Problem(
            chosen, score, dense["fitness"], tolerance, confident, multiple, seed, engine, curves, choices, sizes
        )
        whole = {split: ready(splits[split]) for split in DECIDING}

        def stored(plan: Plan, split: str) -> Scores:
            """Scores of what `apply_` makes of a plan."""

            def measure() -> Scores:
                elastic.set({})
                with factors.stored(model, plan):
                    return whole[split].run(model)

            return remembered(book, f"stored on {split}: {plan_key(plan)}", measure)

        if choices.kept is None:
            for split, scores in dense.items():
                _require_attainable(scores, split, tolerance, confident)
        offered = searcher.run(problem)
        found = confirm(problem, offered, lambda plan: stored(plan, "validation"), dense["validation"])
        plan = found.winner.plan
        fitness_scores = stored(plan, "fitness")
        tested = bottlenecks(problem, found.winner) if choices.bottlenecks and searcher.per_matrix else None
        return SearchResult(
            Plan(plan, pivoted=factors.pivoted),
            every,
            dense,
            {"fitness": fitness_scores, "validation": found.validation},
            problem.evaluated,
            found.tried,
            limits,
            engine.cost.summary() | {"states_peak_bytes": engine.peak_bytes},
            problem.rank_correlation,
            tested,
            smaller(problem, plan),
            tuple(unpredicted),
        )


def _dense(book: Journal | None, measure: Callable[[], dict[str, Scores]]) -> dict[str, Scores]:
    """The dense model's scores by split, from the journal if it has them: a resumed search compares with the same."""
    if book is not None and "dense" in book.records:
        record = book.records["dense"]
        return {split: from_record(record[split]) for split in DECIDING}
    dense = measure()
    if book is not None:
        book.add("dense", {split: to_record(scores) for split, scores in dense.items()})
    return dense


def _curves(
    book: Journal | None, measure: Callable[[], tuple[dict[str, np.ndarray], int]]
) -> tuple[dict[str, np.ndarray], int]:
    """Sensitivities and the tokens they took, from the journal if it has them: a resumed search sees the same bits."""
    if book is not None and "curves" in book.records:
        record = book.records["curves"]
        return {name: np.array(curve) for name, curve in record["curves"].items()}, record["tokens"]
    curves, tokens = measure()
    if book is not None:
        book.add("curves", {"tokens": tokens, "curves": {name: curve.tolist() for name, curve in curves.items()}})
    return curves, tokens


def _latencies(book: Journal | None, model: PreTrainedModel, matrices: dict[str, Matrix], objective: str):
    """Layers' times, from the journal if it has them: they never come out the same twice."""
    if objective != "latency":
        return None
    if book is None:
        return measure(model, matrices)
    if "latency" not in book.records:
        book.add("latency", {"table": measure(model, matrices)})
    return book.records["latency"]["table"]


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
    """The matrices without those, and options that ask the others for the size that is asked of all."""
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


def _own(fitness: Fitness, model: PreTrainedModel, examples: Sequence[Example]) -> Scores:
    """The user's scores, checked; they stand for the log-likelihoods, too."""
    values = np.asarray(fitness(model, examples), dtype=np.float64)
    if values.shape != (len(examples),) or not np.isfinite(values).all():
        raise InputError(
            f"the fitness function must give one finite number for each of the {len(examples)} examples, got an array "
            f"of shape {values.shape}"
        )
    return Scores(values, values, 0)


def _identity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    factors: CompressionSpace,
    task: Task,
    splits: Mapping[str, Sequence[Example]],
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """All that an evaluation depends on, by the names that a refusal gives. The test split decides nothing."""
    data = [asked_of(task), *(splits[split] for split in ("calibration", "fitness", "validation"))]
    return identity_of(model, tokenizer) | {
        "data": hashlib.sha256(repr(data).encode()).hexdigest(),
        "factors": factors.fingerprint(),
        "recipe": dict(recipe),
    }


def asked_of(task: Task) -> dict[str, Any]:
    """What of a task its scores depend on, beside its examples."""
    # Where the data lie does not matter; a function has no name that lasts but its own.
    asked = {field.name: getattr(task, field.name) for field in fields(task) if field.name not in _NAMES_OF_TASK}
    if callable(task.metric):
        asked["metric"] = f"{task.metric.__module__}:{task.metric.__qualname__}"
    return asked


def _require_attainable(dense: Scores, split: str, tolerance: float, confident: bool) -> None:
    """InputError where even the dense model misses the tolerance; a note where nothing could miss it."""
    if not within(dense, dense, tolerance, confident):
        raise InputError(
            f"even the dense model misses the tolerance on the {split} split: it scores {dense.accuracy:.3f}, and a "
            f"tolerance of {tolerance} asks for {(1 - tolerance) * dense.accuracy:.3f}. Scores must not be negative"
        )
    if dense.accuracy <= 0:
        progress.note(f"the dense model scores 0 on the {split} split: every model is as good")
