"""`sieve prune`: the main job."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from sieve.commands import options as given
from sieve.commands.output import print_json, say_saved
from sieve.errors import InputError
from sieve.models.config import find_model
from sieve.run.recipe import Recipe
from sieve.tasks import load_task
from sieve.utils import interrupts, progress
from sieve.utils.files import require_new
from sieve.utils.terminal import console


def prune(
    model: given.DenseModel = None,
    task: given.TaskOption = None,
    data: given.Data = None,
    output: given.Output = None,
    tolerance: given.Tolerance = None,
    search: given.Search = None,
    confident: given.Confident = None,
    allow_no_signal: given.AllowNoSignal = None,
    calibration_tokens: given.Tokens = None,
    method: given.Method = None,
    pivot: given.Pivot = None,
    format: given.Format = None,
    shrinkage: given.Shrinkage = None,
    shared_input: given.SharedInput = None,
    refit: given.Refit = None,
    heal: given.Heal = None,
    heal_steps: given.HealSteps = None,
    pattern: given.Pattern = None,
    compare: given.Compare = None,
    task_aware: given.TaskAware = None,
    general: given.General = None,
    tau: given.Tau = None,
    fusion: given.Fusion = None,
    task_share: given.TaskShare = None,
    ramp: given.Ramp = None,
    rank_multiple: given.RankMultiple = None,
    kept: given.Kept = None,
    objective: given.Objective = None,
    granularity: given.Granularity = None,
    paper: given.Paper = None,
    population: given.Population = None,
    offspring: given.Offspring = None,
    generations: given.Generations = None,
    budget: given.Budget = None,
    layers: given.Layers = None,
    racing: given.Racing = None,
    surrogate: given.Surrogate = None,
    bottlenecks: given.Bottlenecks = None,
    workers: given.Workers = None,
    resume: given.Resume = None,
    dtype: given.Dtype = None,
    device: given.Device = None,
    trust_remote_code: given.Trust = False,
    seed: given.Seed = None,
    config: given.Config = None,
    statistics: given.StatisticsFile = None,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Prune MODEL for a task: the smallest model whose accuracy stays within the tolerance."""
    given_here = locals()
    options = {field.name: given_here[field.name] for field in fields(Recipe) if field.name in given_here}
    options["pivot"] = _pivots(pivot, format)
    options["shrinkage"] = _share(shrinkage)
    options["workers"] = int(workers) if workers is not None and workers.isdecimal() else workers
    if resume is not None:
        if output is not None or config is not None:
            raise InputError("--resume names the folder and brings its recipe: leave --output and --config out")
        from sieve.run.resume import unfinished_recipe

        output, config = resume, unfinished_recipe(resume)
    _require_given({"output": output} if config else {"model": model, "task": task, "output": output})
    recipe = Recipe.load(config, **options) if config else Recipe.from_dict({}, **options)
    prune_to(recipe, output, statistics, as_json, quiet, resume is not None, trust_remote_code, data)


def _require_given(values: dict[str, Any]) -> None:
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise InputError(
            f"no {' and no '.join(missing)} given: sieve prune MODEL --task TASK --output DIR (or --config RECIPE "
            "--output DIR, or --resume DIR)"
        )


def _pivots(pivot: bool | None, format: str | None) -> bool | None:
    """What --pivot and --format say, where they agree."""
    if format is None:
        return pivot
    if format not in ("pivoted", "plain"):
        raise InputError(f"--format must be pivoted or plain, got {format!r}")
    if pivot is not None and pivot != (format == "pivoted"):
        raise InputError(f"--format {format} contradicts --{'' if pivot else 'no-'}pivot: give one of them")
    return format == "pivoted"


def _share(text: str | None) -> float | str | None:
    """A number if it is one: the recipe checks the rest."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def prune_to(
    recipe: Recipe,
    output: Path,
    statistics: Path | None,
    as_json: bool,
    quiet: bool,
    resume: bool = False,
    trust_remote_code: bool = False,
    data: Path | None = None,
) -> None:
    with progress.shown(not quiet), interrupts.reported(lambda: _left(output)):
        # What is wrong with these is said before the import of torch, which takes seconds.
        if not resume:
            require_new(output)
        load_task(recipe.task, data)
        find_model(recipe.model)
        from sieve.run import pipeline
        from sieve.run.report.show import show_report

        kept = statistics or pipeline.calibration_cache()
        report = pipeline.prune(recipe, output, kept, resume, trust_remote_code, data)
    if as_json:
        print_json(report)
    else:
        show_report(report, console())
        trusted = " --trust-remote-code" if trust_remote_code else ""
        console().print(f"The pruned model is in {output}. Try: sieve eval {output}{trusted}", soft_wrap=True)
    say_saved(f"the pruned model is in {output}")


def _left(output: Path) -> str:
    """What a run that was interrupted on its way to `output` leaves."""
    from sieve.run.resume import unfinished_recipe

    try:
        unfinished_recipe(output)
    except InputError:
        return "interrupted: nothing half-written is left"
    return f"interrupted: what is finished is kept; go on with --resume {output}"
