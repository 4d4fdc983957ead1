"""`sieve generate`: what a model writes to one prompt of its task."""

from typing import Annotated

import typer

from sieve.commands import options as given
from sieve.commands.output import print_json
from sieve.models.config import check_device, check_dtype
from sieve.tasks import load_task
from sieve.tasks.splits import check_seed
from sieve.utils import progress
from sieve.utils.terminal import console


def generate(
    model: given.Model,
    text: Annotated[
        str, typer.Argument(help="Value of the field of the task's prompt; of several fields a JSON object.")
    ],
    against: Annotated[str | None, typer.Option(help="Another model, such as the dense one, to answer too.")] = None,
    task: given.TaskOption = None,
    data: given.Data = None,
    dtype: given.Dtype = None,
    device: given.Device = None,
    trust_remote_code: given.Trust = False,
    seed: given.Seed = None,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Write the answer to TEXT, for tasks of type generation; a model pruned for choices answers by `sieve predict`."""
    check_dtype(dtype or "auto")
    check_device(device or "auto")
    if seed is not None:
        check_seed(seed)
    if task is not None:
        load_task(task, data)
    from sieve.run.predict import generate as written

    with progress.shown(not quiet):
        answers = written(model, text, task, against, data, dtype or "auto", device or "auto", seed, trust_remote_code)
    if as_json:
        print_json(answers)
        return
    for source, answer in answers.items():
        if against is not None:
            console().print(f"{source}:", style="bold", soft_wrap=True)
        # Line by line: a line break is the answer's own, other control characters are printed as escapes.
        for line in answer.split("\n"):
            console().print(line, soft_wrap=True)
