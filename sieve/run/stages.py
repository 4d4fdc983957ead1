"""The stages of a run: announced when they begin, timed when they end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sieve.utils import progress
from sieve.utils.devices import device_error


class Stages:
    """Names and times the stages of a run; a device that fails ends it with a `DeviceError` that names the stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        progress.say(name, style="bold")
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            told = device_error(error, name)
            if told is None:
                raise
            raise told from error
        self.seconds[name] = time.perf_counter() - started
        progress.say(f"  {self.seconds[name]:.1f} s")
        progress.measured({f"seconds/{name}": self.seconds[name]})
