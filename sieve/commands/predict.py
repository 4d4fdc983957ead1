"""`sieve predict`: a model's answers to the rows of a file."""

from pathlib import Path
from typing import Annotated

import typer

from sieve.commands import options as given
from sieve.commands.output import say_saved
from sieve.models.config import check_device, check_dtype
from sieve.tasks import load_task
from sieve.tasks.splits import check_seed
from sieve.utils import progress
from sieve.utils.terminal import console


def predict(
    model: given.Model,
    file: Annotated[
        str, typer.Argument(help="Rows: .jsonl, .csv or .parquet; - reads JSON lines from standard input.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="File to make, .jsonl or .csv. \\[default: JSON lines on standard output]")
    ] = None,
    task: given.TaskOption = None,
    data: given.Data = None,
    dtype: given.Dtype = None,
    device: given.Device = None,
    trust_remote_code: given.Trust = False,
    seed: given.Seed = None,
    quiet: given.Quiet = False,
) -> None:
    """Answer the task's question of each row of FILE: choices with probabilities, or written answers.

    Rows keep their order and all of their fields, and need no right answer. For a pruned folder the task and seed
    default to those of its recipe; the task's own data are read for its few-shot examples alone.
    """
    check_dtype(dtype or "auto")
    check_device(device or "auto")
    if seed is not None:
        check_seed(seed)
    if task is not None:
        load_task(task, data)
    from sieve.run.predict import predict_file

    with progress.shown(not quiet):
        number = predict_file(
            model, file, output, task, data, dtype or "auto", device or "auto", seed, trust_remote_code
        )
    if output is not None:
        console().print(f"{number:,} rows with answers are in {output}", soft_wrap=True)
        say_saved(f"the answers are in {output}")
