"""`sieve prune`: the main job."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sieve.commands.derive import command
from sieve.commands.options import Shown, TaskData, Trust
from sieve.commands.output import print_json, say_saved
from sieve.errors import InputError
from sieve.models.config import find_model
from sieve.run.presets import with_preset
from sieve.run.recipe import Recipe, recipe_options
from sieve.tasks import load_task
from sieve.utils import interrupts, progress
from sieve.utils.files import require_new
from sieve.utils.options import option, options_of
from sieve.utils.terminal import console
from sieve.utils.trackers import TRACKERS, check_tracker, tracked


@dataclass(frozen=True, kw_only=True)
class PruneConfig(TaskData, Trust, Shown):
    """Options that do not decide the result, so no recipe holds them."""

    config: Path | None = option(None, "Recipe (YAML or JSON); options on the command line win", group="Task")
    fast: bool = option(
        False, "Take the least time: pairs by their outputs on half the text, not healed", group="Method"
    )
    best: bool = option(
        False,
        "Find the smallest model, however long it takes: MLP widths, generated text, four healed rounds",
        group="Method",
    )
    format: str | None = option(None, "How pairs are stored: pivoted (--pivot) or plain (--no-pivot)", group="Method")
    statistics: Path | None = option(
        None, "Keep the calibration in this file, and use it again if it fits", shown="the cache", group="Machine"
    )
    output: Path | None = option(None, "Folder to make for the pruned model", group="Output")
    resume: Path | None = option(None, "Go on with the interrupted run that makes this folder", group="Output")
    track: str | None = option(
        None, "Send what is measured to a tracker that is installed", choices=TRACKERS, group="Output"
    )
    push_to_hub: str | None = option(
        None, "Then upload the folder to this repository of the hub, a private one where it is new", group="Output"
    )


@command(PruneConfig, *recipe_options())
def prune(run: PruneConfig, given: dict[str, Any]) -> None:
    """Find the smallest model that still does the task.

    Sieve prunes MODEL; the accuracy of the result stays within the tolerance of the dense model's. Where you give
    neither --method nor --config, what you do not give is --method widths --shared-input --heal auto --rounds 3
    --bottlenecks 4, which heals without labels. --fast and --best stand for other options.
    """
    output, config = run.output, run.config
    if run.resume is not None:
        if output is not None or config is not None:
            raise InputError("--resume names the folder and its recipe: leave --output and --config out")
        from sieve.run.resume import unfinished_recipe

        output, config = run.resume, unfinished_recipe(run.resume)
    # A recipe is whole: only a preset that is named changes it.
    if config is None or run.fast or run.best:
        given = with_preset(given, fast=run.fast, best=run.best)
    _require_given(
        {"output": output} if config else {name: given.get(name) for name in ("model", "task")} | {"output": output}
    )
    with progress.shown(not run.quiet):
        recipe = Recipe.load(config, **given) if config else Recipe.from_dict(given)
    if run.format is not None:
        recipe = _in_format(recipe, run.format, given.get("pivot"))
    prune_to(output, recipe, run)


def _require_given(values: dict[str, Any]) -> None:
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise InputError(
            f"no {' and no '.join(missing)} given: sieve prune MODEL --task TASK --output DIR (or --config RECIPE "
            "--output DIR, or --resume DIR)"
        )


def _in_format(recipe: Recipe, format: str, pivot: bool | None) -> Recipe:
    """The recipe with pairs stored as --format says; InputError if --pivot contradicts it, or nothing makes pairs."""
    if format not in ("pivoted", "plain"):
        raise InputError(f"--format must be pivoted or plain, got {format!r}")
    pivoted = format == "pivoted"
    if "pivot" not in options_of(recipe.traits.config):
        raise InputError(f"--format is for pairs only, and {recipe.method} makes {recipe.traits.results}: leave it out")
    if pivot is not None and pivot != pivoted:
        raise InputError(f"--format {format} contradicts --{'' if pivot else 'no-'}pivot: give one of them")
    return replace(recipe, pivot=pivoted)


def prune_to(output: Path, recipe: Recipe, run: PruneConfig) -> None:
    """Prune as the recipe says into a new folder, and show the report."""
    resume = run.resume is not None
    with progress.shown(not run.quiet), interrupts.reported(lambda: _left(output)):
        # Report mistakes in the arguments before torch is imported, which takes seconds.
        if not resume:
            require_new(output)
        load_task(recipe.task, run.data)
        find_model(recipe.model)
        if run.track is not None:
            check_tracker(run.track)
        if run.push_to_hub is not None:
            from sieve.run.push import check_push, push

            check_push(run.push_to_hub)
        # Then run the main job.
        from sieve.run import calibrated, pipeline
        from sieve.run.report.show import show_report

        kept = run.statistics or calibrated.calibration_cache()
        tracker = nullcontext() if run.track is None else tracked(run.track, output.name, recipe.to_dict())
        with tracker:
            report = pipeline.prune(recipe, output, kept, resume, run.trust_remote_code, run.data)
    # Show the report, and upload the folder only when it is complete.
    if run.as_json:
        print_json(report)
    else:
        show_report(report, console())
        trusted = " --trust-remote-code" if run.trust_remote_code else ""
        console().print(f"The pruned model is in {output}. Try: sieve eval {output}{trusted}", soft_wrap=True)
    say_saved(f"the pruned model is in {output}")
    if run.push_to_hub is not None:
        with progress.shown(not run.quiet):
            address = push(output, run.push_to_hub)
        if not run.as_json:
            console().print(f"It is at {address}", soft_wrap=True)


def _left(output: Path) -> str:
    """A message on what an interrupted run leaves."""
    from sieve.run.resume import unfinished_recipe

    try:
        unfinished_recipe(output)
    except InputError:
        return "interrupted: nothing half-written is left"
    return f"interrupted: what is finished is kept; go on with --resume {output}"
