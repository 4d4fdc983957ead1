"""The kernels' tests on the device, in parallel where pytest-xdist is installed.

Tests that compile for other devices, or need no device, are left out. When the time is up, the tests that have run
count.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.job import Job, LeftOut, Place
from bench.gpu.sizes import Sizes

ROOT = Path(__file__).parents[2]
TESTS = "tests/sieve_kernels"
ELSEWHERE = (
    "test_aot.py",
    "test_aot_combinations.py",
    "test_bench.py",
    "test_cpp.py",
    "test_traffic.py",
    "test_tune.py",
)
WORKERS = 14
"""At most so many processes, because each holds a context on the device."""
GRACE = 10
"""Seconds between the end of the tests and the end of the job."""
CRASHED = "crashed while running"
"""pytest-xdist's message for a test whose process ended."""
CELLS = tuple(f"tests.{name}" for name in ("failed", "passed", "skipped", "not_run"))


def missing() -> str:
    return "" if find_spec("pytest") else "pytest is not installed"


def jobs(sizes: Sizes) -> list[Job]:
    return [Job("tests", CELLS, run, seconds=30, patience=3600)]


def run(place: Place, arguments: list[str] | None = None) -> dict[str, float]:
    """The counts. tests.txt in the job's folder names the failed tests. `arguments`: which tests pytest runs."""
    log = place.folder / "tests.jsonl"
    output, ended = _pytest(place.left() - GRACE, log, arguments or _arguments())
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    cells, text = _count(events, ended)
    (place.folder / "tests.txt").write_text(text + ("" if events else output[-4000:]), encoding="utf-8")
    if not events:
        lines = [line for line in output.splitlines() if line.strip()] or ["pytest says nothing"]
        raise LeftOut(f"no test has run: {next((line for line in lines if 'error' in line.lower()), lines[-1])}")
    return cells


def _arguments() -> list[str]:
    workers = min(WORKERS, os.cpu_count() or 1)
    parallel = ["-n", str(workers)] if find_spec("xdist") and workers > 1 else []
    return [TESTS, *(f"--ignore={TESTS}/{name}" for name in ELSEWHERE), "-m", "not slow", *parallel]


def _pytest(seconds: float, log: Path, arguments: list[str]) -> tuple[str, bool]:
    """Run pytest; returns (its output, whether it finished in time). All its processes have ended then."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu.pytest_outcomes", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", "--tb=line", *arguments]
    # With the same hash seed all workers collect parameters in the same order, as pytest-xdist requires.
    environment = os.environ | {"PYTHONHASHSEED": "0", "SIEVE_TEST_LOG": str(log)}
    with (log.with_suffix(".out")).open("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            ended = process.wait(max(seconds, 1)) is not None
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            _kill(process)
        output.seek(0)
        text = output.read()
    log.with_suffix(".out").unlink()
    return text, ended


def _kill(process: subprocess.Popen) -> None:
    """End a process and its session."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + 3
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
    process.wait()


def _count(events: list[dict], ended: bool) -> tuple[dict[str, float], str]:
    """The cells, and a text that names the failed tests and those that were running at the end."""
    started = [event["test"] for event in events if "started" in event]

    # Outcomes. When a process ends, pytest-xdist also blames the test that it would have run next: ignore that one.
    outcomes = {
        event["test"]: event
        for event in events
        if "outcome" in event and not (CRASHED in event["message"] and event["test"] not in started)
    }
    total = max((event["total"] for event in events if "total" in event), default=len(outcomes))
    counts = Counter(event["outcome"] for event in outcomes.values())

    # Files that cannot be imported because a package is missing are left out; they have not failed.
    failed = [event for event in outcomes.values() if event["outcome"] == "failed"]
    lacking = [
        event for event in failed if event.get("collected") is False and "ModuleNotFoundError" in event["message"]
    ]
    failed = [event for event in failed if event not in lacking]
    cells = {
        "tests.failed": len(failed),
        "tests.passed": counts["passed"],
        "tests.skipped": counts["skipped"],
        "tests.not_run": max(total - len(outcomes), 0),
    }

    # The text.
    running = [test for test in dict.fromkeys(started) if test not in outcomes]
    lines = [
        f"{counts['passed']} passed, {len(failed)} failed, {counts['skipped']} skipped, "
        f"{cells['tests.not_run']} not run" + ("" if ended else " when the time was up"),
        f"left out, as they need no device: {', '.join(ELSEWHERE)}",
        *(f"left out: {event['test']}: {event['message']}" for event in lacking),
        *(f"\n{count} × {message}" for message, count in Counter(e["message"] for e in failed).most_common()),
        "",
        *(f"FAILED {event['test']}: {event['message']}" for event in failed),
        *(f"RUNNING AT THE END {test}" for test in running),
    ]
    return {name: float(value) for name, value in cells.items()}, "\n".join(lines) + "\n"
