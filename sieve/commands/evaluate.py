"""`sieve eval`: a model's score on a task."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from sieve.commands.derive import command
from sieve.commands.options import Scored, Shown
from sieve.commands.output import print_json
from sieve.models.config import find_model
from sieve.run.recipe import require_options
from sieve.tasks import load_task
from sieve.tasks.splits import SPLITS
from sieve.utils import progress
from sieve.utils.options import option, require_values
from sieve.utils.terminal import console

MEASURES = ("accuracy", "loglik", "accuracy_difference", "loglik_difference")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Scored, Shown):
    """What is scored, on what."""

    split: str = option("test", "Split to score", choices=SPLITS, group="Task")
    against: str | None = option(None, "Another model to compare with, example by example", group="Task")


@command(EvalConfig, "task", "seed", "dtype", "device")
def evaluate(run: EvalConfig, given: dict[str, Any]) -> None:
    """Score MODEL on a task. A pruned folder brings its own task and seed."""
    require_values(run)
    require_options(given)
    if "task" in given:
        load_task(given["task"], run.data)
    for source in filter(None, (run.model, run.against)):
        find_model(source)
    from sieve.run.evaluate import evaluate_source

    with progress.shown(not run.quiet):
        result = evaluate_source(
            run.model, split=run.split, against=run.against, trust_remote_code=run.trust_remote_code, data=run.data,
            **given,
        )  # fmt: skip
    if run.as_json:
        print_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from sieve.run.report.show import chance_line

    title = f"{result['task']}, {result['split']} split, {result['accuracy']['n']} examples (95 % interval)"
    table = Table(title=title, min_width=len(title))
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("interval", justify="right")
    for measure in MEASURES:
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
        console().print("The data has changed: these numbers are not of the data that the model's report is of.")
