"""`sieve generate`: what a model writes to one prompt of its task."""

from dataclasses import MISSING, dataclass
from typing import Any

from sieve.commands.derive import command
from sieve.commands.options import Scored, Shown
from sieve.commands.output import print_json
from sieve.run.recipe import require_options
from sieve.tasks import load_task
from sieve.utils import progress
from sieve.utils.options import option
from sieve.utils.terminal import console


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Scored, Shown):
    """What is answered, and by which models."""

    text: str = option(
        MISSING,
        "Value of the field of the task's prompt; for several fields a JSON object",
        argument=True,
        group="Task",
    )
    against: str | None = option(None, "Another model that answers too, such as the dense one", group="Task")


@command(GenerateConfig, "task", "seed", "dtype", "device")
def generate(run: GenerateConfig, given: dict[str, Any]) -> None:
    """Write the answer to TEXT, for tasks of type generation.

    A model that is pruned for choices answers by `sieve predict`.
    """
    require_options(given)
    if "task" in given:
        load_task(given["task"], run.data)
    from sieve.run.predict import generate as written

    with progress.shown(not run.quiet):
        answers = written(
            run.model, run.text, against=run.against, data=run.data, trust_remote_code=run.trust_remote_code, **given
        )
    if run.as_json:
        print_json(answers)
        return
    for source, answer in answers.items():
        if run.against is not None:
            console().print(f"{source}:", style="bold", soft_wrap=True)
        # Print line by line: line breaks belong to the answer, other control characters are printed as escapes.
        for line in answer.split("\n"):
            console().print(line, soft_wrap=True)
