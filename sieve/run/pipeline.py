"""The main job: from a recipe to a folder that holds the pruned model."""

from collections.abc import Container, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sieve.calibration.keep import require_place
from sieve.checkpoint.folder import save
from sieve.checkpoint.size import model_bytes, model_parameters
from sieve.compression.apply import apply_
from sieve.compression.methods import method_report
from sieve.compression.quantize import quantize_
from sieve.compression.space import CompressionSpace
from sieve.compression.vocabulary.bpe import require_bpe
from sieve.compression.vocabulary.trim import TrimmedVocabulary, keep_tokens_, match_vocabulary_, task_sequences
from sieve.evaluation.chance import control_levels
from sieve.evaluation.check import check_splits
from sieve.evaluation.scoring import Scores
from sieve.evaluation.speed import measure_speed
from sieve.healing.checkpoint import Checkpoint, digest
from sieve.healing.config import TUNED
from sieve.healing.heal import heal_, lessons_of
from sieve.healing.loop import restore, state_of
from sieve.healing.possible import possible_healing
from sieve.healing.teacher import Lessons
from sieve.healing.unlabelled import unlabelled_examples
from sieve.models.linears import by_pattern
from sieve.models.loading import load_model
from sieve.models.prunable_model import PrunableModel
from sieve.run.calibrated import general_statistics, prunable_of_, task_statistics
from sieve.run.compressed import compressed
from sieve.run.heal import letters_taught
from sieve.run.measured import MEASURED, Measured
from sieve.run.memory_plan import plan_memory
from sieve.run.recipe import Recipe
from sieve.run.report.build import build_report
from sieve.run.report.healed import Controls, healed_report
from sieve.run.report.html.run_page import run_pages
from sieve.run.report.rescored import quantised_report
from sieve.run.report.rounds import rounds_report
from sieve.run.report.trimmed import trimmed_report
from sieve.run.requirements import require_dense, require_reachable_plans
from sieve.run.resume import ResumableRun
from sieve.run.rounds import Rounds, keeps_tolerance
from sieve.run.speeds import compare_speeds
from sieve.run.stages import Stages
from sieve.searchers.engine.journal import Journal
from sieve.searchers.engine.ray_workers import require_workers
from sieve.searchers.identity import task_identity
from sieve.searchers.refitted import Refitted, best_refitted, smallest_refitted
from sieve.searchers.run import layer_seconds, run_search
from sieve.searchers.signal import DECIDING, dense_scores, signal_notes
from sieve.tasks import load_task
from sieve.tasks.general import general_text
from sieve.tasks.stored import describe_data
from sieve.utils import progress
from sieve.utils.files import require_new, require_space
from sieve.utils.identity import identity_of

# Journal of the largest search: some thousand evaluations of some hundred examples.
_JOURNAL_BYTES = 64 << 20


def prune(
    recipe: Recipe,
    output: str | Path,
    statistics: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    data: str | Path | None = None,
) -> dict[str, Any]:
    """Calibrate, compress, search, confirm, test and save; returns the report that `output/report.json` holds.

    Args:
        recipe: what to do; checked before any work starts.
        output: folder to make; it must not exist, and appears only when complete.
        statistics: file or folder that keeps the calibration (see `sieve.calibrate`).
        resume: go on with the run that was interrupted on its way to `output`.
        trust_remote_code: run the code that the model brings; recipes cannot give this permission.
        data: file or folder instead of the one that the task names.

    Raises: every error of the stages; nothing is left behind then but the calibration and, once there are results of
        the search, what is needed to resume it. InputError if another process is making `output`.
    """
    recipe = recipe.check().absolute()
    require_workers(recipe.workers)
    output = Path(output) if resume else require_new(output)
    if statistics is not None:
        require_place(statistics)
    with ResumableRun(output, resume) as unfinished:
        report = _Pipeline(recipe, output, statistics, unfinished, trust_remote_code, data).run()
        unfinished.remove()
    return report


class _Pipeline:
    """One run, with a method per stage. Results of a stage that later stages need are attributes."""

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        statistics: str | Path | None,
        unfinished: ResumableRun,
        trust_remote_code: bool,
        data: str | Path | None,
    ):
        self.recipe, self.output, self.statistics, self.unfinished = recipe, output, statistics, unfinished
        self.trust, self.data = trust_remote_code, data
        self.stages = Stages()
        self.trimmed: TrimmedVocabulary | None = None
        # Scores of the dense model with the trimmed vocabulary.
        self.same_tokens: dict[str, Scores] | None = None
        self.lessons: Lessons | None = None
        self.refitted: Refitted | None = None

    def run(self) -> dict[str, Any]:
        """All stages in their order; returns the report."""
        stages = self.stages
        # Check everything that could refuse the run, and only then leave traces on disk.
        with stages("load"):
            self._load()
        recipe = self.recipe
        self.unfinished.begin(recipe, self.task, self.found)
        identity = identity_of(self.model, self.tokenizer) | {"task": repr(task_identity(self.task))}
        # Everything that needs the dense model comes before matrices are changed.
        with stages("dense"), self.unfinished.dense(identity) as kept:
            self._score_dense(kept)
            self._trim(kept)
            self._learn_lessons(identity)
            if recipe.shared_input:
                self.prunable = prunable_of_(recipe, self.model)
                require_reachable_plans(recipe, self.prunable)
        # Statistics → compressed forms of each matrix → the plan that says how much of each is kept.
        with stages("calibrate"):
            self._calibrate()
        with stages(recipe.traits.stage):
            self.factors = compressed(recipe, self.prunable, self.measured, self.general, not recipe.keeps_statistics)
        with stages("search"), self.unfinished.search() as journal:
            self._search(journal)
        # Make the model, and only now look at the test split.
        chosen = self.factors
        if recipe.refit:
            with stages("refit"):
                chosen = self._refit()
        with stages("test"):
            self._apply_and_test(chosen)
        report = self._report()
        # Healing needs the memory of what was searched with.
        self.factors = self.general = self.refitted = chosen = None
        if recipe.quantize is None:
            self.measured = replace(self.measured, grams={}, sums={}, importance={})
        # Later changes of the model replace the report's numbers.
        if self.lessons is not None:
            report = self._heal(report)
        if recipe.quantize is not None:
            report = self._quantize(report)
        return self._save(report)

    def _measured(self, journal: Journal | None) -> Measured:
        return Measured(self.task, self.splits, self.found, journal)

    def _load(self) -> None:
        """Load task and model, and check all that could refuse the run before the long work."""
        recipe = self.recipe
        self.task = load_task(recipe.task, self.data)
        self.splits = self.task.splits(recipe.seed)
        self.found = describe_data(self.splits)
        self.unlabelled = unlabelled_examples(self.task, recipe.healing.unlabelled, self.splits, recipe.seed)
        planned = plan_memory(recipe, self.splits)
        self.model, self.tokenizer = load_model(recipe.model, recipe.dtype, recipe.device, self.trust)
        require_dense(self.model, recipe.model)
        recipe = planned or plan_memory(recipe, self.splits, self.model, self.tokenizer)
        self.prunable = PrunableModel(self.model)
        if not recipe.shared_input:
            require_reachable_plans(recipe, self.prunable)
        ready = check_splits(self.model, self.tokenizer, self.task, self.splits)
        self.truncated = {name: part.truncated for name, part in ready.items()}
        healing = possible_healing(
            recipe.healing, self.model, self.task, self.splits["calibration"], recipe.limits.allowed
        )
        self.recipe = recipe = replace(recipe, healing=healing)
        if recipe.trim_vocabulary:
            require_bpe(self.tokenizer)
        if recipe.task_aware:
            general_text(recipe.general).splits(recipe.seed)
        # No method makes a model larger, so the dense size is enough.
        require_space(self.output, model_bytes(self.model) + _JOURNAL_BYTES)

    def _score_dense(self, kept: Journal) -> None:
        """Score the dense model before the long work, because a task without signal would waste it."""
        model, tokenizer, task, splits = self.model, self.tokenizer, self.task, self.splits
        measured = self._measured(kept)

        def score(split: str) -> Scores:
            return measured.on(split, "dense", model, tokenizer)

        self.levels = control_levels(task, {name: splits[name] for name in MEASURED}, splits["calibration"])
        self.dense = dense_scores(model, tokenizer, task, splits, self.recipe.allow_no_signal, self.levels, score)
        self.dense_test = score("test")
        self.dense_speed = measure_speed(self.model)

    def _trim(self, kept: Journal) -> None:
        """Drop the tokens that the task does not use, if the recipe says so."""
        whole = _size(self.model)
        if self.recipe.trim_vocabulary:
            sequences = task_sequences(self.tokenizer, self.task, self.splits["calibration"])
            self.trimmed = keep_tokens_(self.model, self.tokenizer, sequences)
            check_splits(self.model, self.tokenizer, self.task, self.splits)
            progress.say(f"  {len(self.trimmed.kept):,} of {self.trimmed.before:,} tokens stay")
            self.same_tokens = self._measured(kept)("dense, the same tokens", self.model, self.tokenizer)
        self.gone = {name: value - _size(self.model)[name] for name, value in whole.items()}

    def _learn_lessons(self, identity: dict[str, Any]) -> None:
        """Compute the lessons for healing while the dense model is still there."""
        recipe, rows = self.recipe, self.splits["calibration"]
        if kind := recipe.healing.kind:
            # A run may be resumed with another limit.
            decides = recipe.to_dict() | {"memory_limit": None}
            self.heal_key = digest(identity, decides, self.found, self.unlabelled)
            self.checkpoint = Checkpoint(self.unfinished.stage("heal"), self.heal_key)
            given = self.model, self.tokenizer, self.task, rows, recipe.heal_steps, kind, self.unlabelled
            self.lessons = self.checkpoint.lessons(lambda: lessons_of(*given), [*rows, *self.unlabelled])

    def _calibrate(self) -> None:
        given = self.recipe, self.prunable, self.tokenizer
        self.measured = task_statistics(*given, self.task, self.statistics)
        self.general = general_statistics(*given, self.statistics) if self.recipe.task_aware else None

    def _search(self, journal: Path) -> None:
        recipe = self.recipe
        # With a given size only later rounds of healing ask for the tolerance.
        confident = recipe.confident and recipe.kept is None
        self.result = run_search(
            self.prunable,
            self.tokenizer,
            self.factors,
            self.task,
            recipe.tolerance,
            recipe.searcher,
            confident=confident,
            margin=recipe.margin,
            rank_multiple=recipe.rank_multiple,
            seed=recipe.seed,
            journal=journal,
            dense=self.dense,
            allow_no_signal=recipe.allow_no_signal,
            generated=self.measured.generated,
            **asdict(recipe.options()),
            **asdict(recipe.engine),
        )

    def _refit(self) -> CompressionSpace:
        """The factors that will be stored: refitted ones, if a plan of them stays within the tolerance."""
        recipe, result = self.recipe, self.result
        given = (self.prunable, self.tokenizer, self.factors, self.measured, result, self.task)
        if recipe.kept is not None:
            refitted = best_refitted(*given, recipe.seed, self.unfinished.journal)
        else:
            refitted = smallest_refitted(
                *given, recipe.tolerance, recipe.confident, recipe.seed, self.unfinished.journal
            )
        if refitted is None:
            progress.say("  no refitted plan stays within the tolerance: the pairs are not refitted")
            return self.factors
        self.refitted = refitted
        self.result = replace(result, plan=refitted.plan, pruned=refitted.pruned)
        return refitted.factors

    def _apply_and_test(self, chosen: CompressionSpace) -> None:
        """Apply the confirmed plan to the model, and only then score it on the test split."""
        result = self.result
        self.scores = {"dense": dict(result.dense), "pruned": dict(result.pruned)}
        self.size = {"dense": {name: value + self.gone[name] for name, value in _size(self.model).items()}}
        self.scores["dense"]["test"] = self.dense_test
        decided = {layer for name, matrix in result.matrices.items() if name in self.factors for layer in matrix.names}
        self.left = _left_dense(self.prunable, decided, self.recipe, result.unpredicted)
        seconds = {"dense": layer_seconds(self.model, result)}
        apply_(self.model, chosen, result.plan)
        self.layer_seconds = seconds | {"pruned": layer_seconds(self.model, result)}
        self.size["pruned"] = _size(self.model)
        measured = self._measured(self.unfinished.journal)
        self.scores["pruned"]["test"] = measured.on("test", "stored", self.model, self.tokenizer)

    def _report(self) -> dict[str, Any]:
        """The report of the pruned model, before it is healed or quantised."""
        text = None if self.general is None else {"text": self.recipe.general, "tokens": self.general.tokens}
        report = build_report(
            self.recipe,
            self.task,
            self.found,
            self.result,
            self.scores,
            self.size,
            self.measured.tokens,
            self.stages.seconds,
            self.factors.ridge,
            method_report(self.factors, self.model, general=text),
            self.factors.shrinkage,
            self.refitted,
            self.levels,
            signal_notes(self.task, self.splits, self.result.dense, self.levels),
            self.truncated,
            self.left,
            self.factors.spectra(self.result.plan),
            self.layer_seconds,
        )
        if self.trimmed is None:
            return report
        return trimmed_report(report, self.trimmed, self.scores["pruned"], self.same_tokens)

    def _heal(self, report: dict[str, Any]) -> dict[str, Any]:
        """Train the model on the lessons, prune and heal again as often as the recipe says; returns the new report."""
        recipe, lessons, unfinished, kind = self.recipe, self.lessons, self.unfinished, self.recipe.healing.kind
        with self.stages("heal"):
            scored = self._measured(unfinished.journal)
            start, name = state_of(self.model), "healed" if recipe.rounds == 1 else "round 1"
            healing = heal_(self.model, lessons, recipe.heal_steps, recipe.seed, kind, self.checkpoint).report()
            # Fewer nats from the teacher can be fewer right answers, by chance: the tolerance is kept all the same.
            once = {split: scored.on(split, name, self.model, self.tokenizer) for split in DECIDING}
            if recipe.kept is None and not keeps_tolerance(recipe, self.result, once):
                progress.note("the healed model is not within the tolerance, as the pruned one is: it stays as it was")
                restore(self.model, start)
                healing |= {"steps": 0, "undone": True}
                once = self.result.pruned
            # Later rounds begin with this model, and end with the smallest one within the tolerance.
            if recipe.rounds > 1:
                first = {"kept": report["kept"], "healing": healing, "seconds": healing["seconds"]}
                texts = self.measured.generated
                rounds = Rounds(
                    recipe, self.task, scored, self.result, lessons, unfinished, self.heal_key, texts, self.trust
                )
                self.model, done = rounds.run(self.model, self.tokenizer, first, once)
                report = rounds_report(report, done)
                healing, name = report.pop("healing"), "healed"
            # Score it, and what its gain is compared with.
            undone = healing.get("undone")
            healed = dict(self.scores["pruned"]) if undone else scored(name, self.model, self.tokenizer)
            tuned = self._tuned_dense(scored) if kind == TUNED else None
            controls = Controls(letters_taught(self.task, lessons, self.splits), tuned)
        dense = self.scores["dense"]
        return healed_report(
            report, healing, dense, self.same_tokens or dense, healed, controls, self.stages.seconds["heal"]
        )

    def _tuned_dense(self, scored: Measured) -> dict[str, Scores]:
        """Scores of the dense model after the same tuning as the pruned one."""
        recipe = self.recipe
        progress.say("  the dense model, tuned likewise")
        dense, own = load_model(recipe.model, recipe.dtype, recipe.device, self.trust)
        match_vocabulary_(dense, own, self.tokenizer)
        checkpoint = Checkpoint(self.unfinished.stage("tuned dense"), self.heal_key)
        heal_(dense, self.lessons, recipe.heal_steps, recipe.seed, TUNED, checkpoint)
        return scored("tuned dense", dense, self.tokenizer)

    def _quantize(self, report: dict[str, Any]) -> dict[str, Any]:
        bits, dense = self.recipe.quantize, self.scores["dense"]
        with self.stages("quantize"):
            quantize_(self.model, bits, self.measured)
            quantised = self._measured(self.unfinished.journal)(f"quantised {bits}", self.model, self.tokenizer)
        size, seconds = model_bytes(self.model), self.stages.seconds["quantize"]
        return quantised_report(report, bits, size, quantised, dense, self.same_tokens or dense, seconds)

    def _save(self, report: dict[str, Any]) -> dict[str, Any]:
        """Write the folder; returns the report with the speeds of both models."""
        speed = compare_speeds(self.model, self.recipe, self.size["dense"]["bytes"], self.dense_speed, self.trust)
        report = {**report, "speed": speed}
        progress.measured(
            {
                "result/removed": report["parameters"]["prunable_removed"],
                **{f"result/accuracy/{split}": one["value"] for split, one in report["accuracy"]["pruned"].items()},
            }
        )
        kept = self.recipe.beside_task()
        pages = run_pages(report, kept)
        save(self.model, self.tokenizer, self.output, report=report, recipe=kept, task=self.task, pages=pages)
        return report


def _left_dense(
    model: PrunableModel, decided: Container[str], recipe: Recipe, unpredicted: Sequence[str]
) -> dict[str, str]:
    """Matrices that no plan could prune → the reason; an asterisk stands for the numbers of all blocks."""
    layers = model.matrices()
    skipped = {name: f"its rows do not divide by {recipe.pattern}" for name in layers if name not in decided}
    skipped |= dict.fromkeys(unpredicted, "the answers have no gradient there")
    return by_pattern(model.left_dense | skipped, layers)


def _size(model: PreTrainedModel) -> dict[str, int]:
    return {"parameters": model_parameters(model), "bytes": model_bytes(model)}
