"""Rows without answers, from a file, for healing: the dense model teaches, so questions alone are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from sieve.errors import InputError
from sieve.tasks import Example, Task
from sieve.tasks.example import render_unanswered, with_shots
from sieve.tasks.formats import as_row, records
from sieve.tasks.identity import prompt_of, same
from sieve.utils import progress

MOST = 1 << 14
"""Rows of the file that are read: healing sees fewer."""


def unlabelled_examples(
    task: Task, file: str | Path | None, splits: Mapping[str, Sequence[Example]], seed: int
) -> list[Example]:
    """The rows of a .jsonl, .csv or .parquet file that are in no split and different from one another.

    A row needs the fields of the prompt and of the choices; other fields, an answer among them, are not read. The user
    is told how many rows are used. None: no file, and no rows.

    Args: splits: of the task, by this seed.

    Raises: InputError for a file that cannot be read, a row that cannot be asked, or a task whose rows are answers.
    """
    if file is None:
        return []
    if task.type == "perplexity" and task.has_prompts:
        raise InputError(
            f"{task.where}: a row of this task is a prompt with its answer, so rows without answers teach nothing: "
            "leave --unlabelled out"
        )
    given = list(islice(records(Path(file).expanduser()), MOST + 1))
    rows = [as_row(values, where) for values, where in given[:MOST]]
    if not rows:
        progress.note(f"{file} holds no rows: healing sees the calibration rows alone")
        return []
    # A question of any split, whatever its choices, would be seen before it is asked.
    known = {prompt_of(one.question) for split in splits.values() for one in split}
    found: dict[str, Example] = {}
    try:
        examples = render_unanswered(task, rows)
    except InputError as error:
        raise InputError(f"--unlabelled {file}: {error}") from None
    for example in examples:
        question = same(example.prompt)
        if question and question not in known:
            found.setdefault(question, example)
    left = f"{len(found):,} of the {len(rows):,} rows of {file} are used" if found else f"no row of {file} is used"
    more = f" (the first {MOST:,} were read)" if len(given) > MOST else ""
    progress.note(f"healing: {left}{more}: the others are in a split, or twice in the file")
    return _as_asked(task, list(found.values()), seed)


def _as_asked(task: Task, examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples as the task's own look: texts have no prompt, questions have the solved ones before them."""
    if not task.has_prompts:
        return [replace(one, prompt="", references=(one.prompt,)) for one in examples]
    shots = task.solved_examples(seed)
    return [with_shots(one, shots) for one in examples]
