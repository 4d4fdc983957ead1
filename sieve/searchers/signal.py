"""Whether the dense model is better than no model: else a tolerance relative to its score confirms every candidate.

Known from the dense model alone, before any candidate: where it scores 0, or no more than a model that knows nothing of
the task, the smallest candidate passes for as good.
"""

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.errors import InputError
from sieve.evaluation.chance import Chance, chance_level
from sieve.evaluation.confidence import bootstrap
from sieve.evaluation.scoring import Scores, evaluate
from sieve.tasks import Example, Task
from sieve.utils import progress

DECIDING = ("fitness", "validation")
"""The splits whose scores decide what is taken."""


def dense_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    splits: Mapping[str, Sequence[Example]],
    allow_no_signal: bool = False,
    levels: Mapping[str, Chance | None] | None = None,
    score: Callable[[str], Scores] | None = None,
) -> dict[str, Scores]:
    """The dense model's scores on the splits that decide, compared with what is scored without a model.

    levels: by split (`control_levels`); None: chance and majority alone.
    score: split → its scores, where they may be known already; None: they are measured.

    Raises: InputError where it scores 0 on one of them, unless `allow_no_signal`.
    """
    dense: dict[str, Scores] = {}
    for split in DECIDING:
        dense[split] = evaluate(model, tokenizer, task, splits[split]) if score is None else score(split)
        level = _level(task, splits, levels, split)
        controls = "" if level is None else f"; {level}"
        progress.say(f"  the dense model on the {split} split: accuracy {bootstrap(dense[split].score)}{controls}")
        require_signal(dense[split], split, task, allow_no_signal)
    for note in signal_notes(task, splits, dense, levels):
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


def signal_notes(
    task: Task,
    splits: Mapping[str, Sequence[Example]],
    dense: Mapping[str, Scores],
    levels: Mapping[str, Chance | None] | None = None,
) -> list[str]:
    """One line for each split on which the dense model's 95 % interval reaches down to what needs no model."""
    notes = [signal_note(split, dense[split], _level(task, splits, levels, split)) for split in DECIDING]
    return [note for note in notes if note is not None]


def signal_note(split: str, scores: Scores, level: Chance | None, model: str = "the dense model") -> str | None:
    """A line where the model's 95 % interval reaches down to what needs no model; None where it does not."""
    interval = bootstrap(scores.score)
    if level is None or interval.low > level.best:
        return None
    if interval.low > max(level.majority, level.chance or 0.0):
        return (
            f"letters alone: on the {split} split {model}'s accuracy of {interval} is no better than that of an n-gram "
            f"classifier trained on the calibration rows, {level.ngrams:.3f}, so it need not show knowledge of the task"
        )
    return (
        f"no signal: on the {split} split {model}'s accuracy of {interval} is no better than {level}, so what is "
        "within the tolerance need not know the task"
    )


def _level(
    task: Task, splits: Mapping[str, Sequence[Example]], levels: Mapping[str, Chance | None] | None, split: str
) -> Chance | None:
    return chance_level(task, splits[split]) if levels is None else levels[split]
