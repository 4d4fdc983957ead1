"""Times on a GPU: of work that is replayed with cold weights, and of the host while it enqueues calls.

Contenders take turns in one run, and their medians are compared. On a CPU the same calls run without graphs, so that
the benchmark can be tried there.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from bench import devices
from sieve_kernels.autotune.measure import cpu_clock

Work = Callable[[], object]
LEAST = 2e-3
"""Minimum seconds of one measurement on a GPU, so that its beginning and end do not matter."""


def copies(make: Callable[[], Sequence[torch.Tensor]], cold: int, beside: int = 0) -> list[Sequence[torch.Tensor]]:
    """Enough sets of weights for one pass to read `cold` bytes. `beside`: other bytes that a call moves."""
    first = make()
    size = sum(tensor.nbytes for tensor in first) + beside
    return [first, *(make() for _ in range(-(-cold // size) - 1))]


def cold_seconds(contenders: dict[str, list[Work]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds per call of each contender. A contender is a list of calls, each with its own weights.

    On a GPU the list is one CUDA graph.
    """
    works, repeats = {}, {}
    for name, calls in contenders.items():
        works[name] = replayed(partial(_through, calls), device)
        repeats[name] = _repeats(works[name], device)
    times = {name: [] for name in works}
    names = list(works)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(works[name], device, repeats[name]) / len(contenders[name]))
    return {name: statistics.median(taken) for name, taken in times.items()}


def _through(calls: list[Work]) -> None:
    for call in calls:  # results are freed at once, as in a model
        call()


def replayed(work: Work, device: torch.device) -> Work:
    """The work as a CUDA graph; on a CPU the work itself."""
    return devices.graphed(work) if device.type == "cuda" else work


def seconds(work: Work, device: torch.device, repeats: int = 1) -> float:
    """Seconds of one run of the work, from `repeats` runs in a row."""
    if device.type != "cuda":
        return cpu_clock(lambda: [work() for _ in range(repeats)]) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end) / repeats


def _repeats(work: Work, device: torch.device) -> int:
    work()
    return max(1, min(50, round(LEAST / seconds(work, device)))) if device.type == "cuda" else 1


def host_seconds(works: dict[str, Work], device: torch.device, calls: int, rounds: int) -> dict[str, float]:
    """Median seconds that the host needs to enqueue a call, over batches of `calls` calls without synchronisation."""
    times = {name: [] for name in works}
    for work in works.values():
        for _ in range(5):
            work()
    names, collecting = list(works), gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                work = works[name]
                synchronize(device)
                started = time.perf_counter()
                for _ in range(calls):
                    work()
                times[name].append((time.perf_counter() - started) / calls)
        synchronize(device)
    finally:
        if collecting:
            gc.enable()
    return {name: statistics.median(taken) for name, taken in times.items()}


def waited_seconds(works: dict[str, Work], device: torch.device, repeats: int, rounds: int) -> dict[str, float]:
    """Median seconds of the work, host and device, until its result is ready."""
    times = {name: [] for name in works}
    names = list(works)
    for work in works.values():
        work()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            work = works[name]
            synchronize(device)
            started = time.perf_counter()
            for _ in range(repeats):
                work()
            synchronize(device)
            times[name].append((time.perf_counter() - started) / repeats)
    return {name: statistics.median(taken) for name, taken in times.items()}


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
