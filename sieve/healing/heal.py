"""Healing: a few gradient steps of a pruned model towards the predictions of its dense model, or towards the labels.

The closed form is best for each matrix alone, so norms, MLPs and attention cannot make up for one another. Healing
changes all parameters except the embedding and the head together (or adapters of the matrices inside the blocks).
Several losses and rates start from the same model. They are judged on calibration rows that are held back, and
settings that are clearly worse than the best one are given up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.compression.vocabulary.trim import match_vocabulary_
from sieve.errors import InputError
from sieve.healing.checkpoint import Checkpoint, digest
from sieve.healing.config import LABEL_FREE, LORA, TUNED, check_kind, check_unlabelled
from sieve.healing.forward import packs
from sieve.healing.labels import label_lessons
from sieve.healing.loop import Course, Healer, Setting, held_back_distance, restore, state_of
from sieve.healing.lora import add_adapters_, merge_adapters_, require_adaptable
from sieve.healing.masters import trained_parameters
from sieve.healing.pace import ROWS, pace, rows_to_teach
from sieve.healing.teacher import Lessons, require_rows, teach
from sieve.healing.unlabelled import unlabelled_examples
from sieve.models.loading import evaluating, load_model
from sieve.tasks import Example, Task, load_task
from sieve.utils import progress
from sieve.utils.files import storage_errors
from sieve.utils.identity import identity_of, model_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# How often the held-back rows are looked at during the healing.
LOOKS = 5
# A setting is given up if its distance is larger than the best one's by this fraction: the end of a cosine still
# changes ranks.
MARGIN = 0.1
# At most this many settings go on after the first, second and each later look.
_AT_MOST = (2, 2, 1)
# Of one rate: while it is high, a model is further away than with a lower rate, and nearer at the end.
OF_CHOICES = (Setting(1.0, 0.1, 5e-5), Setting(0.0, 1.0, 5e-5))
OF_TOKENS = (Setting(0.0, 1.0, 2e-5), Setting(0.0, 1.0, 5e-5), Setting(0.0, 1.0, 2e-4))
# Where no setting brings the model nearer, the nearest is tried once more at this fraction of its rate.
_SLOWER = 0.2
# Factor of the rate for adapters: their products start at zero.
_OF_ADAPTERS = 10.0


@dataclass(frozen=True)
class Healing:
    """What was done to a model.

    kind: "label-free", "tuned" (towards the labels), or "lora" (label-free, of adapters, which are merged).
    before, after: mean KL(teacher ‖ model) on the held-back rows, in nats: between the choices of a question, or over
        tokens where there are none; of labels, the right answer's negative log-likelihood. `after` is never larger.
    course: of the setting with the best result; tries: the courses of the others.
    training, held_back: rows; skipped: rows without a token to predict; trained: parameters.
    """

    kind: str
    before: float
    after: float
    course: Course
    tries: list[Course]
    training: int
    held_back: int
    skipped: int
    trained: int
    seconds: float

    def report(self) -> dict[str, Any]:
        """Plain values for JSON; what diverged has no number."""
        return {
            "kind": self.kind,
            "steps": self.course.best,
            "steps_tried": self.course.curve[-1][0],
            "setting": asdict(self.course.setting),
            "held_back": {
                "rows": self.held_back,
                "before": self.before,
                "after": self.after,
                "curve": [[step, _finite(value)] for step, value in self.course.curve],
            },
            "tries": [
                {**asdict(one.setting), "steps": one.curve[-1][0], "held_back": _finite(one.curve[-1][1])}
                for one in self.tries
            ],
            "losses": [_finite(loss) for loss in self.course.losses],
            "rows": self.training,
            "skipped": self.skipped,
            "trained_parameters": self.trained,
            "seconds": round(self.seconds, 3),
        }


def heal(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str | Path | Task,
    teacher: PreTrainedModel | str | None = None,
    steps: int | None = None,
    seed: int = 0,
    kind: str = LABEL_FREE,
    checkpoint: str | Path | None = None,
    unlabelled: str | Path | None = None,
) -> Healing:
    """Heal a pruned model in place: afterwards it is nearer to its teacher on held-back rows, or unchanged.

    Only the task's calibration split is read, and its labels only if the kind is "tuned".

    Args:
        model: pruned (`sieve.apply_`, `sieve.load`), in any dtype; it is changed in place, zeros of masks stay.
        tokenizer: of both models.
        teacher: the dense model, with the same tokens as the model, or its name for `sieve.load_model`; not needed
            for labels.
        steps: None: 50, or fewer, so that each calibration row is seen at most twice; where rows are long, also fewer
            rows a step (`sieve.healing.pace`).
        seed: of the task's splits and of the order of rows.
        kind: "label-free": the dense model teaches; "tuned": the labels do; "lora": the dense model teaches adapters
            (by peft) of the matrices inside the blocks, which are merged into the factors: ranks stay.
        checkpoint: folder, made if it is missing, that keeps the state of the healing: after an interruption the same
            call continues, to the same result. Sieve does not remove it.
        unlabelled: .jsonl, .csv or .parquet file with rows that are in no split, to learn from beside the calibration
            rows; not for "tuned".

    Raises: InputError for too few calibration rows, a teacher with another vocabulary or none, or adapters that the
        model cannot take.

    Example:
        >>> healing = sieve.heal(pruned, tokenizer, "geography", teacher="smollm2")
        >>> healing.before, healing.after
        (0.31, 0.12)
    """
    # Check everything that can be checked before the teacher is loaded.
    task = load_task(task)
    check_steps(steps)
    check_kind(kind)
    check_unlabelled(unlabelled, kind)
    if teacher is None and kind != TUNED:
        raise InputError("no teacher given: name the dense model that the model was made from")
    if kind == LORA:
        require_adaptable(model)
    splits = task.splits(seed)
    examples = splits["calibration"]
    require_rows(task, examples)
    more = unlabelled_examples(task, unlabelled, splits, seed)
    # The checkpoint's key covers all that the result depends on.
    kept = None
    if checkpoint is not None:
        folder = Path(checkpoint)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        key = healing_key(model, tokenizer, task, [*examples, *more], teacher, steps, seed, kind)
        kept = Checkpoint(folder, key)

    # The teacher is only loaded if the checkpoint does not already hold its lessons.
    def taught() -> Lessons:
        dense = teacher
        if kind != TUNED and isinstance(teacher, str):
            dense, own = load_model(teacher, device=model.device)
            match_vocabulary_(dense, own, tokenizer)
        if kind != TUNED:
            require_vocabulary(model, dense)
        return lessons_of(model if kind == TUNED else dense, tokenizer, task, examples, steps, kind, more)

    lessons = taught() if kept is None else kept.lessons(taught, [*examples, *more])
    return heal_(model, lessons, steps, seed, kind, kept)


def healing_key(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    teacher: PreTrainedModel | str | None,
    steps: int | None,
    seed: int,
    kind: str,
) -> str:
    """The key of a healing's checkpoint: everything that the healing depends on."""
    named = teacher if teacher is None or isinstance(teacher, str) else model_fingerprint(teacher)
    # The examples stand for the task's data and file.
    asked = (task.type, task.normalize, task.is_chat, task.stop, task.max_new_tokens, task.truncate)
    return digest(identity_of(model, tokenizer), named, asked, list(examples), steps, seed, kind)


def require_vocabulary(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """InputError unless both predict the same tokens."""
    if len({one.get_output_embeddings().weight.shape[0] for one in (model, teacher)}) > 1:
        raise InputError(
            "the teacher has another vocabulary than the model: name the dense model that it was made from (of a "
            "trimmed model, leave it the same tokens: `sieve.match_vocabulary_`)"
        )


def check_steps(steps: int | None) -> None:
    """InputError unless this is None or a number of steps."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise InputError(f"the steps of healing must be a whole number of at least 1, got {steps!r}")


def lessons_of(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    steps: int | None = None,
    kind: str = LABEL_FREE,
    unlabelled: Sequence[Example] = (),
) -> Lessons:
    """The lessons of as many rows as healing will use; the teacher is not needed afterwards.

    Args:
        teacher: for labels, any model with the same context length.
        examples: the calibration split. unlabelled: rows beside it, which labels have nothing to say of.
    """
    most = rows_to_teach(tokenizer, task, examples, steps)
    if kind == TUNED:
        return label_lessons(teacher, tokenizer, task, examples, *most)
    return teach(teacher, tokenizer, task, examples, *most, unlabelled)


def settings_of(choices: bool) -> tuple[Setting, ...]:
    """The losses and rates for tasks with choices, or without, where all parameters are trained."""
    return OF_CHOICES if choices else OF_TOKENS


def settings_for(lessons: Lessons, kind: str) -> tuple[Setting, ...]:
    """The losses and rates to try."""
    settings = settings_of(lessons.training[0].question.choices)
    factor = _OF_ADAPTERS if kind == LORA else 1.0
    return tuple(replace(one, rate=factor * one.rate) for one in settings)


def heal_(
    model: PreTrainedModel,
    lessons: Lessons,
    steps: int | None = None,
    seed: int = 0,
    kind: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> Healing:
    """`heal` with lessons that were made before. kind: None means the kind of the lessons."""
    started = time.perf_counter()
    kind = kind or lessons.kind
    training, held_back = lessons.training, lessons.held_back
    steps, rows = (steps, ROWS) if steps else pace(training)
    # Measure the model as it is; no result may be worse than this.
    with evaluating(model):
        together = packs(model, [lesson.question for lesson in (*training, *held_back)])
    start, before = state_of(model), held_back_distance(model, held_back, together)
    if kind == LORA:
        add_adapters_(model, seed)
    trained = sum(one.numel() for one in trained_parameters(model).values())
    adapted = state_of(model)
    # Try all settings in turns, and keep the one that came nearest.
    asked = settings_for(lessons, kind)

    def tried(some: Sequence[Setting], first: int) -> list[Healer]:
        healers = [Healer(model, lessons, one, steps, rows, seed, before, together) for one in some]
        _take_turns(healers, first, steps, before, checkpoint)
        return healers

    healers = tried(asked, 0)
    courses = [one.course for one in healers]
    if not any(one.best for one in courses):
        progress.say("  no setting brought the model nearer: the nearest is tried once more, with smaller steps")
        nearest = min(courses, key=lambda one: one.curve[-1][1]).setting
        # Their optimisers take more memory than the model.
        del healers
        restore(model, adapted)
        healers = tried([replace(nearest, rate=_SLOWER * nearest.rate)], len(asked))
        courses += [one.course for one in healers]
    healer = min(healers, key=lambda one: one.course.after)
    healer.finish(adapted)
    course, after = healer.course, healer.course.after
    if kind == LORA:
        merge_adapters_(model)
        # Merged weights are rounded to the model's dtype, which changes the result: measure it again.
        after = held_back_distance(model, held_back, together) if course.best else before
        if after >= before:
            restore(model, start)
            course.best, after = 0, before
    if course.best == 0:
        progress.note("healing brought the model no nearer to its teacher on held-back rows: the model is unchanged")
    return Healing(
        kind, before, after, course, [one for one in courses if one is not course], len(training), len(held_back),
        lessons.skipped, trained, time.perf_counter() - started,
    )  # fmt: skip


def _take_turns(
    healers: Sequence[Healer], first: int, steps: int, before: float, checkpoint: Checkpoint | None
) -> None:
    """Run the steps of all settings; after each look, go on without those that have fallen behind.

    first: the number of the first one in the checkpoint.
    """
    # Continue from a checkpoint, if there is one of the same settings.
    of = ""
    if checkpoint is not None:
        of = digest(steps, before, [one.course.setting for one in healers])
        for number, healer in enumerate(healers, first):
            checkpoint.restore(number, healer, of)
    # Let all settings take the same number of steps, then compare them on the held-back rows.
    going_on = dict(enumerate(healers, first))
    looks = sorted({max(1, steps * part // LOOKS) for part in range(1, LOOKS + 1)})
    started = time.perf_counter()
    with progress.bar("healing", len(healers) * steps, "steps", summary=False) as advance:
        for place, look in enumerate(looks):
            for number, healer in going_on.items():
                keep = partial(checkpoint.keep, number, of=of) if checkpoint is not None else lambda healer: None
                healer.go_on(look, advance, keep)
                found = healer.course.at(look)
                progress.say(f"  {healer.course.setting}: {before:.4f} → {found:.4f} nats after {look} steps")
            # Give up the settings that are too far behind, and write that down.
            order = sorted(going_on, key=lambda number: going_on[number].course.at(look))
            nearest = going_on[order[0]].course.at(look)
            limit, most = nearest + MARGIN * abs(nearest), _AT_MOST[min(place, len(_AT_MOST) - 1)]
            for rank, number in enumerate(order):
                if rank >= most or going_on[number].course.at(look) > limit:
                    healer = going_on.pop(number)
                    advance(steps - look)
                    if checkpoint is not None:
                        checkpoint.keep(number, healer, of, given_up=True)
    # The bar also counts the steps that were given up.
    taken = sum(healer.steps for healer in healers)
    progress.say(f"  healing: {taken} steps in {time.perf_counter() - started:.1f} s")


def _finite(value: float) -> float | None:
    return value if abs(value) < math.inf else None
