"""The stages of a run: announced when they begin, timed when they end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sieve.utils import progress


class Stages:
    """Names and times the stages of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        progress.say(name, style="bold")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        progress.say(f"  {self.seconds[name]:.1f} s")
        progress.measured({f"seconds/{name}": self.seconds[name]})
