"""Whether the dense model's scores say anything: a tolerance that is relative to no skill confirms every model.

Known from the dense model alone, before any candidate: where it scores 0, or no more than a model that knows nothing of
the task, the smallest candidate passes for as good.
"""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve import progress
from sieve.errors import InputError
from sieve.fitness import Scores, evaluate
from sieve.fitness.chance import chance_level
from sieve.fitness.intervals import bootstrap
from sieve.tasks import Example, Task

DECIDING = ("fitness", "validation")
"""The splits whose scores decide what is taken."""


def dense_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    splits: Mapping[str, Sequence[Example]],
    allow_no_signal: bool = False,
) -> dict[str, Scores]:
    """The dense model's scores on the splits that decide, compared with what knowing nothing scores.

    Raises: InputError where it scores 0 on one of them, unless `allow_no_signal`.
    """
    dense: dict[str, Scores] = {}
    for split in DECIDING:
        dense[split] = evaluate(model, tokenizer, task, splits[split])
        level = chance_level(task, splits[split])
        beside = "" if level is None else f"; {level}"
        progress.say(f"  the dense model on the {split} split: accuracy {bootstrap(dense[split].score)}{beside}")
        require_signal(dense[split], split, task, allow_no_signal)
    for note in signal_notes(task, splits, dense):
        progress.note(note)
    return dense


def require_signal(dense: Scores, split: str, task: Task, allow_no_signal: bool = False) -> None:
    """InputError where the dense model scores 0, unless `allow_no_signal`."""
    if dense.accuracy <= 0 and not allow_no_signal:
        look = {"generation": "its prompt, stop, max_new_tokens, metric and references"}.get(task.type, "its prompt")
        raise InputError(
            f"{task.where}: the dense model scores 0 on the {split} split, so every pruned model would be within the "
            f"tolerance: check the task ({look}), take a better model, or give --allow-no-signal"
        )


def signal_notes(task: Task, splits: Mapping[str, Sequence[Example]], dense: Mapping[str, Scores]) -> list[str]:
    """One line for each split on which the dense model's 95 % interval reaches down to knowing nothing."""
    notes = []
    for split in DECIDING:
        level = chance_level(task, splits[split])
        interval = bootstrap(dense[split].score)
        if level is not None and interval.low <= level.best:
            notes.append(
                f"no signal: on the {split} split the dense model's accuracy of {interval} is no better than "
                f"{level}, so what is within the tolerance need not know the task"
            )
    return notes
