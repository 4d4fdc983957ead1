"""Runs a part in a process of its own, within its time. If a job breaks the process, the part restarts without it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from bench.gpu.job import Job, Part

WORKER = (sys.executable, "-m", "bench.gpu.worker")
LATE = "the time was up"
GRACE = 15
"""Seconds by which the last job may exceed the part's time."""


@dataclass
class Outcome:
    """The results of a part: numbers, the jobs that returned them, and why other jobs returned none."""

    cells: dict[str, float] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    begun: str | None = None
    since: float = 0.0

    def read(self, line: str) -> None:
        """Read a line of the worker's log."""
        event = json.loads(line)
        if "begun" in event:
            self.begun, self.since = event["job"], time.monotonic()
            return
        self.begun = None
        if "cells" in event:
            self.cells |= event["cells"]
            self.finished.add(event["job"])
        elif "failed" in event:
            self.failed[event["job"]] = event["failed"]
        else:
            self.left_out[event["job"]] = event["left_out"]

    def done(self) -> set[str]:
        """Jobs that are not to run again."""
        return {*self.finished, *self.failed, *self.left_out}


@dataclass
class Run:
    """Runs a part's jobs. `options`: the worker's; `folder`: for its files; `news`: called with every result."""

    part: Part
    jobs: list[Job]
    options: list[str]
    folder: Path
    news: Callable[[Outcome], None]
    worker: Sequence[str] = WORKER

    def within(self, seconds: float) -> Outcome:
        """Run the jobs within `seconds`."""
        outcome, deadline = Outcome(), time.monotonic() + seconds
        if why := self.part.missing():
            outcome.left_out = {job.name: why for job in self.jobs}
        while waiting := [job for job in self.jobs if job.name not in outcome.done()]:
            left = deadline - time.monotonic()
            if left < min(job.seconds for job in waiting):
                outcome.left_out |= {job.name: LATE for job in waiting}
                break
            status = self._work(left, outcome)
            if not any(job.name in outcome.done() for job in waiting):
                why = f"the process ended with status {status} before it began a job"
                outcome.failed |= {job.name: why for job in waiting}
        self.news(outcome)
        return outcome

    def _work(self, seconds: float, outcome: Outcome) -> int:
        """Run one process until it ends or is stopped; the job that was running then counts as failed."""
        with tempfile.TemporaryDirectory() as place:
            log = Path(place, "log.jsonl")
            log.touch()
            command = [*self.worker, self.part.name, "--seconds", str(seconds), "--log", str(log)]
            command += ["--folder", str(self.folder), *self.options, "--skip", *sorted(outcome.done())]
            process = subprocess.Popen(command, start_new_session=True)
            try:
                with log.open(encoding="utf-8") as lines:
                    why = self._follow(process, lines, outcome, time.monotonic() + seconds + GRACE)
            finally:
                stop(process)
        if outcome.begun:
            target = outcome.left_out if why == LATE else outcome.failed
            target[outcome.begun] = why or f"the process ended with status {process.returncode}"
            outcome.begun = None
        return process.returncode

    def _follow(self, process: subprocess.Popen, lines: TextIO, outcome: Outcome, deadline: float) -> str:
        """Read the log until the process ends (returns "") or must be stopped (returns why)."""
        patience = {job.name: job.patience for job in self.jobs}
        while True:
            ended = process.poll() is not None
            if _read(lines, outcome):
                self.news(outcome)
            if ended:
                return ""
            if time.monotonic() > deadline:
                return LATE
            if outcome.begun and time.monotonic() > outcome.since + patience[outcome.begun]:
                return f"it gave no result in {patience[outcome.begun]:.0f} s"
            time.sleep(0.1)


def _read(lines: TextIO, outcome: Outcome) -> bool:
    """Read the new lines of the log; returns whether there were any."""
    found = False
    while line := lines.readline():
        while not line.endswith("\n"):  # the line is still being written
            time.sleep(0.01)
            line += lines.readline()
        outcome.read(line)
        found = True
    return found


def stop(process: subprocess.Popen) -> None:
    """End a process and its session: SIGTERM first, so that it can end its children, then SIGKILL."""
    for kind, wait in ((signal.SIGTERM, 8), (signal.SIGKILL, 8)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait)
