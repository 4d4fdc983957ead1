"""Healing: a few gradient steps of a pruned model towards what its dense model says, without reading a label.

The closed form is best matrix by matrix; norms, MLPs and attention cannot make up for one another there. Here all
parameters but the embedding and the head move together. Several losses and rates start from the same model; they are
judged on calibration rows that are held back, and those that are clearly further from the dense model are given up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.compression.vocabulary.trim import match_vocabulary_
from sieve.errors import InputError
from sieve.healing.forward import packs
from sieve.healing.loop import Course, Healer, Setting, held_back_distance, state_of
from sieve.healing.masters import trained_parameters
from sieve.healing.teacher import Lessons, teach
from sieve.models.loading import evaluating, load_model
from sieve.tasks import Example, Task, load_task
from sieve.utils import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEPS = 50
ROWS = 32  # lessons of a step
_EPOCHS = 2  # over the calibration rows, beyond which a model learns the rows
LOOKS = 5  # at the held-back rows, on the way
MARGIN = 0.1  # of the nearest setting's distance, by which another is given up: the end of a cosine moves ranks
OF_CHOICES = (Setting(1.0, 0.1, 5e-5), Setting(0.0, 1.0, 2e-5), Setting(0.0, 1.0, 1e-5))
OF_TOKENS = (Setting(0.0, 1.0, 2e-5), Setting(0.0, 1.0, 5e-5), Setting(0.0, 1.0, 2e-4))


@dataclass(frozen=True)
class Healing:
    """What was done to a model.

    before, after: mean KL(teacher ‖ model) on the held-back rows, in nats: between the choices of a question, or over
        tokens where there are none. `after` is never larger.
    course: of the setting that came nearest; tries: of the others.
    training, held_back: rows; skipped: rows without a token to predict; trained: parameters.
    """

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
            "kind": "label-free",
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
    teacher: PreTrainedModel | str,
    steps: int | None = None,
    seed: int = 0,
) -> Healing:
    """Heal a pruned model in place: afterwards it is nearer to `teacher` on rows held back, or as it was.

    Only the task's calibration split is read, and none of its labels.

    Args:
        model: pruned (`sieve.apply_`, `sieve.load`), in any dtype; it is changed in place, zeros of masks stay.
        tokenizer: of both models.
        teacher: the dense model, with the tokens that the model has, or what `sieve.load_model` finds it by.
        steps: None: 50, or so many that each calibration row is seen at most twice.
        seed: of the task's splits and of the order of rows.

    Raises: InputError for too few calibration rows, or a teacher with another vocabulary.

    Example:
        >>> healing = sieve.heal(pruned, tokenizer, "geography", teacher="smollm2")
        >>> healing.before, healing.after
        (0.31, 0.12)
    """
    task = load_task(task)
    check_steps(steps)
    examples = task.splits(seed)["calibration"]
    if isinstance(teacher, str):
        teacher, own = load_model(teacher, device=model.device)
        match_vocabulary_(teacher, own, tokenizer)
    require_vocabulary(model, teacher)
    return heal_(model, lessons_of(teacher, tokenizer, task, examples, steps), steps, seed)


def require_vocabulary(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """InputError unless both predict the same tokens."""
    if len({one.get_output_embeddings().weight.shape[0] for one in (model, teacher)}) > 1:
        raise InputError(
            "the teacher has another vocabulary than the model: name the dense model that it was made from (of a "
            "trimmed model, leave it the same tokens: `sieve.match_vocabulary_`)"
        )


def check_steps(steps: int | None) -> None:
    """InputError unless it is None or a number of steps."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise InputError(f"the steps of healing must be a whole number of at least 1, got {steps!r}")


def lessons_of(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    steps: int | None = None,
) -> Lessons:
    """The teacher's values of as many calibration rows as healing will use; the teacher is not needed afterwards."""
    return teach(teacher, tokenizer, task, examples, (steps or STEPS) * ROWS)


def heal_(model: PreTrainedModel, lessons: Lessons, steps: int | None = None, seed: int = 0) -> Healing:
    """`heal` by lessons that were taught before."""
    started = time.perf_counter()
    training, held_back = lessons.training, lessons.held_back
    steps = steps or max(1, min(STEPS, _EPOCHS * len(training) // ROWS))
    with evaluating(model):
        together = packs(model, [lesson.question for lesson in (*training, *held_back)])
    start, before = state_of(model), held_back_distance(model, held_back, together)
    settings = OF_CHOICES if training[0].question.choices else OF_TOKENS
    healers = [Healer(model, lessons, setting, steps, ROWS, seed, before, together) for setting in settings]
    courses = [one.course for one in healers]
    looks = sorted({max(1, steps * part // LOOKS) for part in range(1, LOOKS + 1)})
    with progress.bar("healing", len(healers) * steps, "steps") as advance:
        for look in looks:
            for healer in healers:
                healer.go_on(look, advance)
                found = healer.course.curve[-1][1]
                progress.say(f"  {healer.course.setting}: {before:.4f} → {found:.4f} nats after {healer.steps} steps")
            nearest = min(one.course.curve[-1][1] for one in healers)
            going_on = [one for one in healers if one.course.curve[-1][1] <= nearest + MARGIN * abs(nearest)]
            advance((len(healers) - len(going_on)) * (steps - look))
            healers = going_on
    healer = min(healers, key=lambda one: one.course.after)
    healer.finish(start)
    course = healer.course
    if course.best == 0:
        progress.note("healing brought the model no nearer to the dense one on held-back rows: it is as it was before")
    return Healing(
        before, course.after, course, [one for one in courses if one is not course], len(training), len(held_back),
        lessons.skipped, sum(one.numel() for one in trained_parameters(model).values()), time.perf_counter() - started,
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return value if abs(value) < math.inf else None
