"""`sieve predict`: a model's answers to the rows of a file."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from sieve.commands.derive import command
from sieve.commands.options import Quiet, Scored
from sieve.commands.output import say_saved
from sieve.run.recipe import require_options
from sieve.tasks import load_task
from sieve.utils import progress
from sieve.utils.options import option
from sieve.utils.terminal import console


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Scored, Quiet):
    """Which rows are answered, and where the answers go."""

    file: str = option(
        MISSING,
        "Rows: .jsonl, .csv or .parquet; - reads JSON lines from standard input",
        argument=True,
        group="Task",
    )
    output: Path | None = option(
        None, "File to make, .jsonl or .csv", shown="JSON lines on standard output", group="Output"
    )


@command(PredictConfig, "task", "seed", "dtype", "device")
def predict(run: PredictConfig, given: dict[str, Any]) -> None:
    """Answer the task's question for each row of FILE.

    Answers are choices with probabilities, or text. Rows keep their order and all of their fields, and need no right
    answer. A pruned folder brings its own task and seed; of the task's data only the few-shot examples are read.
    """
    require_options(given)
    if "task" in given:
        load_task(given["task"], run.data)
    from sieve.run.predict import predict_file

    with progress.shown(not run.quiet):
        number = predict_file(
            run.model, run.file, run.output, data=run.data, trust_remote_code=run.trust_remote_code, **given
        )
    if run.output is not None:
        console().print(f"{number:,} rows with answers are in {run.output}", soft_wrap=True)
        say_saved(f"the answers are in {run.output}")
