"""The options of the command line: their types, their help and the defaults that it shows."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from sieve.registry import MASKS, NESTED
from sieve.run.recipe import Recipe
from sieve.searchers.algorithms.base import SEARCHERS

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

# Of `sieve prune` alone.
DenseModel = Annotated[str | None, typer.Argument(help="'smollm2', a hub id, a local folder or a GGUF file.")]
Output = Annotated[Path | None, typer.Option(help="Folder to make for the pruned model.")]
Tolerance = Annotated[float | None, _option("tolerance", "ε in [0, 1), relative to the dense accuracy.")]
Search = Annotated[
    str | None, _option("search", f"Searcher: {', '.join(SEARCHERS)}.", default="budget; for masks uniform")
]
Confident = Annotated[
    bool | None,
    typer.Option("--confident", help="Demand the lower end of the paired 95 % interval, not the mean."),
]
AllowNoSignal = Annotated[
    bool | None,
    typer.Option("--allow-no-signal", help="Go on where the dense model scores 0: every candidate will do."),
]
Pivot = Annotated[
    bool | None,
    _option("pivot", "Store pairs in fewer parameters, by the same maps.", "--pivot/--no-pivot"),
]
Format = Annotated[
    str | None, typer.Option("--format", help="How pairs are stored: pivoted or plain, as --pivot and --no-pivot say.")
]
Shrinkage = Annotated[
    str | None,
    _option("shrinkage", "Share of a prior in the statistics, or auto: chosen on held-back data.", default="no prior"),
]
SharedInput = Annotated[
    bool | None, typer.Option("--shared-input", help="One pair for q, k and v, one for gate and up.")
]
Refit = Annotated[
    bool | None, typer.Option("--refit", help="Fit pairs anew to inputs as the pruned model has them: smaller yet.")
]
Heal = Annotated[
    bool | None,
    typer.Option("--heal", help="Then gradient steps towards the dense model on calibration rows, no label read."),
]
HealSteps = Annotated[
    int | None,
    _option("heal_steps", "Steps of healing.", default="50, or two passes over the calibration rows"),
]
Pattern = Annotated[str | None, _option("pattern", "Of masks: unstructured, 2:4 or 4:8.")]
Compare = Annotated[str | None, _option("compare", "Weights compete for their mask within a row or a layer.")]
TaskAware = Annotated[
    bool | None, typer.Option("--task-aware", help="Masks by general text and the task, fused channel by channel.")
]
General = Annotated[
    str | None, _option("general", "General text: a task file of type perplexity.", default="Wikipedia and news")
]
Tau = Annotated[float | None, _option("tau", "Channels whose norms differ by at most this share are shared.")]
Fusion = Annotated[
    str | None,
    _option("fusion", "Of shared channels: mean, max, min, geometric; or concatenate."),
]
TaskShare = Annotated[float | None, _option("task_share", "The task's weight in the mean.")]
Ramp = Annotated[
    float | None,
    _option("ramp", "Layers of a large Hessian keep so much more, the others less."),
]
RankMultiple = Annotated[
    int | None, _option("rank_multiple", "Ranks are rounded up to it.", default="8 on CPU, 32 on GPU")
]
Kept = Annotated[
    float | None,
    typer.Option(help="Best at this fraction of the objective, in the place of the tolerance."),
]
Objective = Annotated[str | None, _option("objective", "What is to become small: parameters, bytes or latency.")]
Granularity = Annotated[str | None, _option("granularity", "What a search varies: matrix, group or block.")]
Paper = Annotated[bool | None, typer.Option("--paper", help="The paper's constants for --search ga.")]
Population = Annotated[int | None, _option("population", "Of a genetic search.", default=_OWN)]
Offspring = Annotated[int | None, _option("offspring", "Evaluated in each generation.", default=_OWN)]
Generations = Annotated[int | None, _option("generations", "Of a genetic search.", default=_OWN)]
Budget = Annotated[
    int | None, _option("budget", "Layer-tokens after which no new generation begins.", default="no limit")
]
Layers = Annotated[bool | None, _option("layers", "Share blocks that candidates have in common.")]
Racing = Annotated[bool | None, _option("racing", "Drop candidates that cannot win early.")]
Surrogate = Annotated[bool | None, _option("surrogate", "Seed and screen by predicted loss.")]
Bottlenecks = Annotated[int | None, _option("bottlenecks", "Matrices of the result to test for being one.")]
Workers = Annotated[
    str | None,
    _option(
        "workers",
        "Evaluate candidates on so many processes, or on a cluster at ray://host:port, by Ray.",
        default="this process",
    ),
]
Resume = Annotated[
    Path | None, typer.Option(help="Go on with the search that was interrupted on its way to this folder.")
]
Config = Annotated[Path | None, typer.Option(help="A recipe (YAML or JSON); options given here win over it.")]
