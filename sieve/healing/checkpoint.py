"""What an interrupted healing leaves to continue from: the lessons, and the state of each setting.

Each setting has a file, which is rewritten from time to time and replaced atomically. Each file is complete in itself,
and the order of rows follows from the seed, so files of different times still lead to the same result, to the bit.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sieve.healing.loop import Course, Healer, Setting
from sieve.healing.rows import Question
from sieve.healing.teacher import Lesson, Lessons
from sieve.utils import progress
from sieve.utils.files import atomic_file

if TYPE_CHECKING:
    from sieve.tasks import Example

# Seconds of work that may be lost: writing more often is slow, as a setting's state is three float32 models.
SECONDS = 60.0
_TENSORS = ("top", "logprobs", "judged", "counts")


class Checkpoint:
    """The files of one healing in a folder that the caller makes and removes.

    Args:
        folder: an existing folder.
        key: identifies what the healing depends on; files of another key are ignored until they are overwritten.
    """

    def __init__(self, folder: Path, key: str):
        self._folder, self._key = folder, key
        self._written: dict[int, float] = {}

    def lessons(self, teach: Callable[[], Lessons], examples: list[Example]) -> Lessons:
        """The kept lessons, or else those that `teach` makes, which are then kept. examples: the calibration split."""
        path = self._folder / "lessons.safetensors"
        kept = self._read(path, "lessons")
        if kept is not None:
            progress.say("  the dense model's values are kept from before")
            return _lessons(*kept, examples)
        lessons = teach()
        self._write(path, "lessons", *_plain(lessons, examples))
        return lessons

    def restore(self, number: int, healer: Healer, of: str) -> None:
        """Bring the healing of setting `number` to where it was left. of: identifies what it started from."""
        kept = self._read(self._path(number), of)
        if kept is None:
            return
        tensors, told = kept
        curve = [(step, nats) for step, nats in told["curve"]]
        course = Course(Setting(**told["setting"]), curve, told["best"], told["losses"])
        healer.restore(course, tensors, told["given_up"])
        progress.say(f"  {course.setting}: {len(course.losses)} steps are kept from before")

    def keep(self, number: int, healer: Healer, of: str, given_up: bool = False) -> None:
        """Write the state of setting `number`, unless it was written less than `SECONDS` ago."""
        now = time.monotonic()
        if not given_up and now - self._written.setdefault(number, now) < SECONDS:
            return
        told = asdict(healer.course) | {"given_up": given_up}
        self._write(self._path(number), of, healer.state(given_up), told)
        self._written[number] = time.monotonic()

    def _path(self, number: int) -> Path:
        return self._folder / f"setting-{number}.safetensors"

    def _write(self, path: Path, of: str, tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
        with atomic_file(path) as temporary:
            plain = {name: one.contiguous() for name, one in tensors.items()}
            save_file(plain, temporary, {"key": self._key, "of": of, "told": json.dumps(told)})

    def _read(self, path: Path, of: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The content of the file; None if it is missing or belongs to something else."""
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
                if (said.get("key"), said.get("of")) != (self._key, of):
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(said["told"])  # noqa: SIM118
        except (OSError, SafetensorError, ValueError):
            return None


def digest(*values: Any) -> str:
    """A digest of values by their representation, and of tensors by their bytes."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


def _plain(lessons: Lessons, examples: list[Example]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    every = [*lessons.training, *lessons.held_back]
    tensors = {name: torch.cat([getattr(one, name) for one in every]) for name in _TENSORS}
    places = {id(one): place for place, one in enumerate(examples)}
    told = {
        "questions": [asdict(one.question) for one in every],
        "training": len(lessons.training),
        "skipped": lessons.skipped,
        "taught": [places[id(one)] for one in lessons.taught],
        "answers": lessons.answers,
        "kind": lessons.kind,
    }
    return tensors, told


def _lessons(tensors: dict[str, torch.Tensor], told: dict[str, Any], examples: list[Example]) -> Lessons:
    every, targets, endings = [], 0, 0
    for values in told["questions"]:
        question = Question(**{name: _tuples(value) for name, value in values.items()})
        own, judged = slice(targets, targets + question.targets), slice(endings, endings + len(question.endings))
        targets, endings = own.stop, judged.stop
        every.append(Lesson(question, *(tensors[name][judged if name == "judged" else own] for name in _TENSORS)))
    border = told["training"]
    taught = [examples[place] for place in told["taught"]]
    return Lessons(every[:border], every[border:], told["skipped"], taught, told["answers"], told["kind"])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
