"""Steps of one healing, and how far the model then is from its teacher on rows that it was not healed on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sieve.healing.forward import predict
from sieve.healing.loss import Distance, distance
from sieve.healing.masters import Masters, trained_parameters
from sieve.healing.rows import in_passes
from sieve.healing.teacher import Lesson
from sieve.models.loading import evaluating, going_backward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """What a healing goes by: weights of the two losses, and the learning rate.

    choices: of KL between the choices of a question, as the task compares them; tokens: of KL over the vocabulary.
    """

    choices: float
    tokens: float
    rate: float

    def __str__(self) -> str:
        return f"{self.choices:g} × KL of choices + {self.tokens:g} × KL of tokens, rate {self.rate:g}"


@dataclass
class Course:
    """How a healing went: (steps, nats on the held-back rows) from 0 steps on; `best` of them is where the model is."""

    setting: Setting
    curve: list[tuple[int, float]]
    best: int = 0
    losses: list[float] = field(default_factory=list)
    diverged: bool = False

    @property
    def after(self) -> float:
        """Nats on the held-back rows, where the model is."""
        return dict(self.curve)[self.best]


def held_back_distance(model: PreTrainedModel, lessons: Sequence[Lesson], together: bool) -> float:
    """Mean KL(teacher ‖ model) in nats: between the choices of a question, or where there are none over the tokens."""
    with evaluating(model), torch.no_grad():
        sums = [(float(one.choices), float(one.tokens)) for one in _distances(model, lessons, together)]
    choices, tokens = map(sum, zip(*sums, strict=True))
    asked, targets = _totals(lessons)
    mean = choices / asked if asked else tokens / targets
    return mean if math.isfinite(mean) else math.inf


def heal_steps(
    model: PreTrainedModel,
    training: Sequence[Lesson],
    held_back: Sequence[Lesson],
    setting: Setting,
    steps: int,
    rows: int,
    seed: int,
    looks: int,
    before: float,
    together: bool,
    advance: Callable[[int], None],
) -> Course:
    """Take `steps`, look `looks` times at the held-back rows, and leave the model where it was nearest to its teacher.

    Args:
        before: nats on the held-back rows as the model is.
        rows: lessons of one step; seed: of their order.
        together: as for `sieve.healing.forward.predict`.
    """
    course = Course(setting, [(0, before)])
    best = state_of(model)
    drawn = _drawn(training, rows, seed)
    with evaluating(model), Masters(model, setting.rate, steps) as masters:
        for step in range(1, steps + 1):
            course.losses.append(_step(model, masters, next(drawn), setting, together))
            course.diverged = not math.isfinite(course.losses[-1])
            advance(1)
            if course.diverged or step * looks // steps > (step - 1) * looks // steps:
                now = math.inf if course.diverged else held_back_distance(model, held_back, together)
                course.curve.append((step, now))
                if now < course.after:
                    course.best, best = step, state_of(model)
            if course.diverged:
                break
    restore(model, best)
    return course


def state_of(model: PreTrainedModel) -> State:
    """A copy of what healing changes."""
    return {name: parameter.detach().clone() for name, parameter in trained_parameters(model).items()}


@torch.no_grad()
def restore(model: PreTrainedModel, state: State) -> None:
    for name, parameter in trained_parameters(model).items():
        parameter.copy_(state[name])


def _step(
    model: PreTrainedModel, masters: Masters, lessons: Sequence[Lesson], setting: Setting, together: bool
) -> float:
    """One step on the mean over all lessons, in as many passes as they need; returns the loss, NaN if it took none."""
    asked, targets = _totals(lessons)
    total = 0.0
    with going_backward(model):
        for one in _distances(model, lessons, together):
            tokens = setting.tokens if asked else 1.0
            loss = tokens * one.tokens / targets
            if asked:
                loss = loss + setting.choices * one.choices / asked
            masters.backward(loss)
            total += float(loss.detach())
    return total if masters.step() else float("nan")


def _distances(model: PreTrainedModel, lessons: Sequence[Lesson], together: bool) -> Iterator[Distance]:
    for numbers in in_passes([lesson.question for lesson in lessons]):
        chosen = [lessons[number] for number in numbers]
        yield distance(predict(model, [lesson.question for lesson in chosen], together), chosen)


def _totals(lessons: Sequence[Lesson]) -> tuple[int, int]:
    """Questions with choices, and targets of all."""
    return sum(lesson.question.choices for lesson in lessons), sum(lesson.question.targets for lesson in lessons)


def _drawn(lessons: Sequence[Lesson], rows: int, seed: int) -> Iterator[list[Lesson]]:
    """Batches of `rows` lessons, every lesson once before any comes again."""
    chance, waiting = random.Random(seed), []
    while True:
        while len(waiting) < rows:
            waiting += chance.sample(list(lessons), len(lessons))
        yield waiting[:rows]
        waiting = waiting[rows:]
