"""The main job: from a recipe to a folder that holds the pruned model."""

import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.calibration.collect import calibrate
from sieve.calibration.keep import require_place
from sieve.calibration.statistics import Statistics
from sieve.checkpoint.folder import save
from sieve.checkpoint.hf_quantizer import SieveConfig
from sieve.checkpoint.size import model_bytes, model_parameters
from sieve.compression.apply import apply_
from sieve.compression.low_rank.share_inputs import share_inputs_
from sieve.compression.methods import compress, method_report, plannable
from sieve.compression.quantize import quantize_
from sieve.compression.vocabulary.bpe import require_bpe
from sieve.compression.vocabulary.trim import keep_tokens_, match_vocabulary_, task_sequences
from sieve.errors import InputError
from sieve.evaluation.chance import control_levels
from sieve.evaluation.check import check_splits
from sieve.evaluation.scoring import Scores, evaluate
from sieve.healing.checkpoint import Checkpoint, digest
from sieve.healing.config import LORA, TUNED
from sieve.healing.heal import heal_, lessons_of
from sieve.healing.lora import require_adaptable
from sieve.healing.teacher import Lessons, require_rows
from sieve.models.linears import by_pattern
from sieve.models.loading import load_model
from sieve.models.prunable_model import PrunableModel
from sieve.run.heal import MEASURED, Measured, letters_taught
from sieve.run.recipe import Recipe
from sieve.run.report.build import build_report
from sieve.run.report.healed import Controls, healed_report
from sieve.run.report.html.run_page import run_pages
from sieve.run.report.rescored import quantised_report
from sieve.run.report.rounds import rounds_report
from sieve.run.report.trimmed import trimmed_report
from sieve.run.resume import ResumableRun
from sieve.run.rounds import Rounds
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.engine.ray_workers import require_workers
from sieve.searchers.engine.remembered import remembered
from sieve.searchers.identity import task_identity
from sieve.searchers.reach import multiple_for, require_plans
from sieve.searchers.refitted import best_refitted, smallest_refitted
from sieve.searchers.run import run_search
from sieve.searchers.signal import dense_scores, signal_notes
from sieve.tasks import load_task
from sieve.tasks.general import GENERAL, general_text
from sieve.tasks.stored import describe_data
from sieve.utils import progress
from sieve.utils.files import cache_folder, require_new, require_space
from sieve.utils.identity import identity_of

_JOURNAL_BYTES = 64 << 20  # of the largest search: some thousand evaluations of some hundred examples


def prune(
    recipe: Recipe,
    output: str | Path,
    statistics: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    data: str | Path | None = None,
) -> dict[str, Any]:
    """Calibrate, project, search, confirm, test and save; returns the report that `output/report.json` holds.

    Args:
        recipe: what to do; checked before any work starts.
        output: folder to make; it must not exist, and appears only when complete.
        statistics: file or folder that keeps the calibration (see `sieve.calibrate`).
        resume: go on with the run that was interrupted on its way to `output`.
        trust_remote_code: run the code that the model brings; a permission, so no recipe gives it.
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
        report = _pruned(recipe, output, statistics, unfinished, trust_remote_code, data)
        unfinished.remove()
    return report


def _pruned(
    recipe: Recipe,
    output: Path,
    statistics: str | Path | None,
    unfinished: ResumableRun,
    trust_remote_code: bool,
    data: str | Path | None,
) -> dict[str, Any]:
    stages = Stages()
    with stages("load"):
        task = load_task(recipe.task, data)
        splits = task.splits(recipe.seed)
        found = describe_data(splits)
        model, tokenizer = load_model(recipe.model, recipe.dtype, recipe.device, trust_remote_code)
        _require_dense(model, recipe.model)
        prunable = PrunableModel(model)
        if not recipe.shared_input:
            _require_plans(recipe, prunable)
        ready = check_splits(model, tokenizer, task, splits)
        truncated = {name: part.truncated for name, part in ready.items()}
        if recipe.healing.kind:
            require_rows(task, splits["calibration"])
        if recipe.healing.kind == LORA:
            require_adaptable(model)
        if recipe.trim_vocabulary:
            require_bpe(tokenizer)
        if recipe.task_aware:
            general_text(recipe.general).splits(recipe.seed)
        require_space(output, model_bytes(model) + _JOURNAL_BYTES)  # masked or not, no model grows
    unfinished.begin(recipe, task, found)
    identity = identity_of(model, tokenizer) | {"task": repr(task_identity(task))}
    with stages("dense"), unfinished.dense(identity) as kept:

        def score(split: str) -> Scores:
            key = f"dense on {split} {found[split]['sha256']}"
            return remembered(kept, key, lambda: evaluate(model, tokenizer, task, splits[split]))

        # Before anything is done to the model, and before the long work that a task without signal would be lost on.
        levels = control_levels(task, {name: splits[name] for name in MEASURED}, splits["calibration"])
        dense = dense_scores(model, tokenizer, task, splits, recipe.allow_no_signal, levels, score)
        dense_test = score("test")
        whole_size, trimmed, same_tokens = _size(model), None, None
        if recipe.trim_vocabulary:
            trimmed = keep_tokens_(model, tokenizer, task_sequences(tokenizer, task, splits["calibration"]))
            check_splits(model, tokenizer, task, splits)
            progress.say(f"  {len(trimmed.kept):,} of {trimmed.before:,} tokens stay")
            same_tokens = Measured(task, splits, kept)("dense, the same tokens", model, tokenizer)
        gone = {name: value - _size(model)[name] for name, value in whole_size.items()}
        lessons = None
        if kind := recipe.healing.kind:
            key = digest(identity, recipe.to_dict(), found)
            checkpoint = Checkpoint(unfinished.stage("heal"), key)
            lessons = checkpoint.lessons(
                lambda: lessons_of(model, tokenizer, task, splits["calibration"], recipe.heal_steps, kind),
                splits["calibration"],
            )
        if recipe.shared_input:
            prunable = PrunableModel(share_inputs_(model))
            _require_plans(recipe, prunable)
    with stages("calibrate"):
        measured = calibrate(
            prunable, tokenizer, task, recipe.calibration_tokens, recipe.method, recipe.seed, path=statistics
        )
        general = _general(recipe, prunable, tokenizer, statistics) if recipe.task_aware else None
    with stages(recipe.traits.stage):
        factors = compress(prunable, measured, recipe.method, recipe.method_config(), general, recipe.own_options())
    with stages("search"), unfinished.search() as journal:
        result = run_search(
            prunable,
            tokenizer,
            factors,
            task,
            recipe.tolerance,
            recipe.searcher,
            confident=recipe.confident,
            margin=recipe.margin,
            rank_multiple=recipe.rank_multiple,
            seed=recipe.seed,
            journal=journal,
            dense=dense,
            allow_no_signal=recipe.allow_no_signal,
            **asdict(recipe.options()),
        )
    chosen, refitted = factors, None
    if recipe.refit:
        with stages("refit"):
            if recipe.kept is not None:
                refitted = best_refitted(
                    prunable, tokenizer, factors, measured, result, task, recipe.seed, unfinished.journal
                )
            else:
                refitted = smallest_refitted(
                    prunable, tokenizer, factors, measured, result, task, recipe.tolerance, recipe.confident,
                    recipe.seed, unfinished.journal,
                )  # fmt: skip
            if refitted is None:
                progress.say("  no refitted plan stays within the tolerance: the pairs are not refitted")
            else:
                chosen, result = refitted.factors, replace(result, plan=refitted.plan, pruned=refitted.pruned)
    with stages("test"):
        scores = {"dense": dict(result.dense), "pruned": dict(result.pruned)}
        size = {"dense": {name: value + gone[name] for name, value in _size(model).items()}}
        scores["dense"]["test"] = dense_test
        left = _left_dense(prunable, factors, recipe, result.unpredicted)
        apply_(model, chosen, result.plan)
        size["pruned"] = _size(model)
        # What was confirmed is what is stored now: only the test split has not been asked yet.
        scores["pruned"]["test"] = remembered(
            unfinished.journal,
            f"stored on test {found['test']['sha256']}",
            lambda: evaluate(model, tokenizer, task, splits["test"]),
        )
    text = None if general is None else {"text": recipe.general, "tokens": general.tokens}
    masks = method_report(factors, model, general=text)
    report = build_report(
        recipe, task, found, result, scores, size, measured.tokens, stages.seconds, factors.ridge, masks,
        factors.shrinkage, refitted, levels, signal_notes(task, splits, result.dense, levels),
        truncated, left,
    )  # fmt: skip
    if trimmed is not None:
        report = trimmed_report(report, trimmed, scores["pruned"], same_tokens)
    if lessons is not None:
        with stages("heal"):
            scored = Measured(task, splits, unfinished.journal)
            healing = heal_(model, lessons, recipe.heal_steps, recipe.seed, kind, checkpoint).report()
            if recipe.rounds > 1:
                first = {"kept": report["kept"], "healing": healing, "seconds": healing["seconds"]}
                rounds = Rounds(recipe, task, splits, result, lessons, unfinished, key, trust_remote_code)
                model, done = rounds.run(model, tokenizer, first)
                report = rounds_report(report, done)
                healing = report.pop("healing")
            healed = scored("healed", model, tokenizer)
            tuned = None
            if kind == TUNED:
                tuned = _tuned_dense(recipe, tokenizer, lessons, scored, unfinished, key, trust_remote_code)
            controls = Controls(letters_taught(task, lessons, splits), tuned)
        report = healed_report(
            report, healing, scores["dense"], same_tokens or scores["dense"], healed, controls, stages.seconds["heal"]
        )
    if recipe.quantize is not None:
        with stages("quantize"):
            quantize_(model, recipe.quantize, measured)
            quantised = Measured(task, splits, unfinished.journal)(f"quantised {recipe.quantize}", model, tokenizer)
        report = quantised_report(
            report, recipe.quantize, model_bytes(model), quantised, scores["dense"], same_tokens or scores["dense"],
            stages.seconds["quantize"],
        )  # fmt: skip
    progress.measured(
        {
            "result/removed": report["parameters"]["prunable_removed"],
            **{f"result/accuracy/{split}": one["value"] for split, one in report["accuracy"]["pruned"].items()},
        }
    )
    kept = recipe.beside_task()
    save(model, tokenizer, output, report=report, recipe=kept, task=task, pages=run_pages(report, kept))
    return report


def _tuned_dense(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Lessons,
    scored: Measured,
    unfinished: ResumableRun,
    key: str,
    trust_remote_code: bool,
) -> dict[str, Scores]:
    """What the dense model scores once it is tuned as the pruned one was."""
    progress.say("  the dense model, tuned likewise")
    dense, own = load_model(recipe.model, recipe.dtype, recipe.device, trust_remote_code)
    match_vocabulary_(dense, own, tokenizer)
    heal_(dense, lessons, recipe.heal_steps, recipe.seed, TUNED, Checkpoint(unfinished.stage("tuned dense"), key))
    return scored("tuned dense", dense, tokenizer)


def calibration_cache() -> Path | None:
    """Where the command line keeps the last calibration, so that a run begun again need not repeat it."""
    return cache_folder("calibration")


def _require_dense(model: PreTrainedModel, source: str) -> None:
    """A tolerance is relative to the dense model: of a pruned one it would say nothing."""
    config = getattr(model.config, "quantization_config", None)
    if isinstance(config, SieveConfig) and config.is_pruned:
        raise InputError(
            f"{source} is pruned already: prune the model that it was made from (to remove more, with a larger "
            "--tolerance), or look at it with `sieve info`"
        )


def _require_plans(recipe: Recipe, model: PrunableModel) -> None:
    """InputError where nothing can be pruned, or not as far as the recipe asks."""
    matrices = plannable(model, recipe.method, recipe.method_config())
    multiple = multiple_for(model.device, recipe.rank_multiple)
    require_plans(matrices, searcher_named(recipe.searcher), recipe.options(), multiple, model.dtype)


class Stages:
    """Names and times the stages of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        progress.say(name, style="bold")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        progress.say(f"  {self.seconds[name]:.1f} s")
        progress.measured({f"seconds/{name}": self.seconds[name]})


def _general(
    recipe: Recipe, model: PrunableModel, tokenizer: PreTrainedTokenizerBase, statistics: str | Path | None
) -> Statistics:
    """The same statistics of general text, kept beside the task's: each place keeps one calibration."""
    if statistics is not None:
        path = Path(statistics)
        statistics = path.with_name(f"{path.stem}.general{path.suffix}") if path.suffix else path / GENERAL
    text = general_text(recipe.general)
    return calibrate(model, tokenizer, text, recipe.calibration_tokens, recipe.method, recipe.seed, path=statistics)


def _left_dense(
    model: PrunableModel, factors: Container[str], recipe: Recipe, unpredicted: Sequence[str]
) -> dict[str, str]:
    """What no plan could prune of the dense model: matrices, or with asterisks those of all blocks → why."""
    layers = model.matrices()
    skipped = {name: f"its rows do not divide by {recipe.pattern}" for name in layers if name not in factors}
    skipped |= dict.fromkeys(unpredicted, "the answers have no gradient there")
    return by_pattern(model.left_dense | skipped, layers)


def _size(model: PreTrainedModel) -> dict[str, int]:
    return {"parameters": model_parameters(model), "bytes": model_bytes(model)}
