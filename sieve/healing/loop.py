"""The steps of one healing, and the model's distance from its teacher on rows that it was not healed on."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from sieve.healing.forward import predict
from sieve.healing.loss import Distance, distance
from sieve.healing.masters import Masters, trained_parameters
from sieve.healing.rows import in_passes
from sieve.healing.teacher import Lesson, Lessons
from sieve.models.halving import in_halves
from sieve.models.loading import evaluating, going_backward
from sieve.utils import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """The hyperparameters of a healing: weights of the two losses, and the learning rate.

    choices: weight of KL between a question's choices, as the task compares them; tokens: of KL over the vocabulary.
    """

    choices: float
    tokens: float
    rate: float

    def __str__(self) -> str:
        return f"{self.choices:g} × KL of choices + {self.tokens:g} × KL of tokens, rate {self.rate:g}"


@dataclass
class Course:
    """The course of a healing: (steps, nats on held-back rows), from 0 steps on; `best` is the number of steps after
    which it was nearest to its teacher."""

    setting: Setting
    curve: list[tuple[int, float]]
    best: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def after(self) -> float:
        """Nats on the held-back rows at its best."""
        return dict(self.curve)[self.best]

    def at(self, steps: int) -> float:
        """Nats at the last look up to so many steps."""
        return [nats for taken, nats in self.curve if taken <= steps][-1]

    @property
    def diverged(self) -> bool:
        """Whether a loss was NaN or infinite."""
        return not all(map(math.isfinite, self.losses))


def held_back_distance(model: PreTrainedModel, lessons: Sequence[Lesson], together: bool) -> float:
    """Mean KL(teacher ‖ model) in nats: between the choices of a question, or over tokens if there are no choices."""
    with evaluating(model), torch.no_grad():
        choices, tokens = _over_passes(
            model, lessons, together, lambda one: np.array([float(one.choices), float(one.tokens)]), "looking"
        ).tolist()
    asked, targets = _totals(lessons)
    mean = choices / asked if asked else tokens / targets
    return mean if math.isfinite(mean) else math.inf


class Healer:
    """One healing of a model, which can be left and continued: several healings take turns on one model.

    Args:
        before: nats on the held-back rows as the model is.
        steps: of the whole healing; rows: lessons of one step; seed: of their order.
        together: as for `sieve.healing.forward.predict`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        lessons: Lessons,
        setting: Setting,
        steps: int,
        rows: int,
        seed: int,
        before: float,
        together: bool,
    ):
        self.course = Course(setting, [(0, before)])
        self._model, self._held_back, self._together = model, lessons.held_back, together
        self._drawn = _drawn(lessons.training, rows, seed)
        self._masters = Masters(model, setting.rate, steps)
        # None stands for the model as it was at the beginning.
        self._best: State | None = None

    @property
    def steps(self) -> int:
        """Number of steps taken so far."""
        return len(self.course.losses)

    def go_on(
        self, until: int, advance: Callable[[int], None], keep: Callable[[Healer], None] = lambda healer: None
    ) -> None:
        """Take steps up to number `until`, then look at the held-back rows; stop after a loss that is NaN or infinite.

        keep: called after each step and look, when the healing can be left.
        """
        if self.course.curve[-1][0] >= until or (len(self.course.curve) > 1 and self.course.diverged):
            advance(max(until - self.steps, 0))
            return
        with evaluating(self._model), self._masters:
            while self.steps < until and not self.course.diverged:
                self.course.losses.append(
                    _step(self._model, self._masters, next(self._drawn), self.course.setting, self._together)
                )
                progress.measured({"heal/loss": self.course.losses[-1]}, self.steps)
                advance(1)
                keep(self)
        lost = math.inf if self.course.diverged else held_back_distance(self._model, self._held_back, self._together)
        self.course.curve.append((self.steps, lost))
        if lost < self.course.after:
            self.course.best, self._best = self.steps, state_of(self._model)
        keep(self)

    def state(self, given_up: bool = False) -> State:
        """All tensors that `restore` needs to continue, or only those of the best look; these are not copies."""
        best = {} if self._best is None else {f"best {name}": one for name, one in self._best.items()}
        return best if given_up else self._masters.state() | best

    def restore(self, course: Course, state: State, given_up: bool = False) -> None:
        """Continue from the course and state of another healing."""
        self.course = course
        best = {name.removeprefix("best "): one for name, one in state.items() if name.startswith("best ")}
        self._best = best or None
        if not given_up:
            self._masters.restore(state, self.steps)
            for _ in range(self.steps):
                next(self._drawn)

    def finish(self, start: State) -> None:
        """Set the model to where it was nearest to its teacher, or to its `start` if no look found it nearer."""
        restore(self._model, start if self._best is None else self._best)


def state_of(model: PreTrainedModel) -> State:
    """A copy of the parameters that healing changes."""
    return {name: parameter.detach().clone() for name, parameter in trained_parameters(model).items()}


@torch.no_grad()
def restore(model: PreTrainedModel, state: State) -> None:
    for name, parameter in trained_parameters(model).items():
        parameter.copy_(state[name])


def _step(
    model: PreTrainedModel, masters: Masters, lessons: Sequence[Lesson], setting: Setting, together: bool
) -> float:
    """One step on the mean over all lessons, in as many passes as needed; returns the loss, NaN if no step was made."""
    asked, targets = _totals(lessons)

    def learn(one: Distance) -> float:
        tokens = setting.tokens if asked else 1.0
        loss = tokens * one.tokens / targets
        if asked:
            loss = loss + setting.choices * one.choices / asked
        masters.backward(loss)
        return float(loss.detach())

    with going_backward(model):
        total = _over_passes(model, lessons, together, learn, "healing")
    return total if masters.step() else float("nan")


def _over_passes(
    model: PreTrainedModel, lessons: Sequence[Lesson], together: bool, use: Callable[[Distance], T], kind: str
) -> T:
    """The sum of what `use` makes of the distances of all lessons, in as many passes as needed."""
    found = []
    for numbers in in_passes([lesson.question for lesson in lessons]):
        chosen = [lessons[number] for number in numbers]

        def part(first: int, end: int, chosen: list[Lesson] = chosen) -> T:
            own = chosen[first:end]
            return use(distance(predict(model, [lesson.question for lesson in own], together), own))

        longest = max(lesson.question.length for lesson in chosen)
        found.append(in_halves(model, len(chosen), longest, part, operator.add, kind))
    return sum(found[1:], found[0])


def _totals(lessons: Sequence[Lesson]) -> tuple[int, int]:
    """Number of questions with choices, and of all targets that count."""
    return sum(lesson.question.choices for lesson in lessons), sum(int(lesson.counts.sum()) for lesson in lessons)


def _drawn(lessons: Sequence[Lesson], rows: int, seed: int) -> Iterator[list[Lesson]]:
    """Batches of `rows` lessons, every lesson once before any comes again."""
    chance, waiting = random.Random(seed), []
    while True:
        while len(waiting) < rows:
            waiting += chance.sample(list(lessons), len(lessons))
        yield waiting[:rows]
        waiting = waiting[rows:]
