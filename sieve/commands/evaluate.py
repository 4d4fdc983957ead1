"""`sieve eval`: a model's score on a task."""

from typing import Annotated

import typer
from rich.table import Table

from sieve.commands import options as given
from sieve.commands.output import print_json
from sieve.models.config import check_device, check_dtype, find_model
from sieve.tasks import load_task
from sieve.tasks.splits import check_seed, check_split
from sieve.utils import progress
from sieve.utils.terminal import console


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
        print_json(result)
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
