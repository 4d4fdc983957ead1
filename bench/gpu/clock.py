"""Time on a GPU: of work that is replayed with cold weights, and of the host that enqueues calls.

Contenders take turns in one run, and medians are compared. On a CPU the same calls run without graphs, so that all of
this can be tried there.
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
"""Seconds that one measurement on a GPU takes at least, so that its beginning and end do not matter."""


def copies(make: Callable[[], Sequence[torch.Tensor]], cold: int, beside: int = 0) -> list[Sequence[torch.Tensor]]:
    """So many sets of weights that going through them reads `cold` bytes; `beside`: bytes a call moves too."""
    first = make()
    size = sum(tensor.nbytes for tensor in first) + beside
    return [first, *(make() for _ in range(-(-cold // size) - 1))]


def cold_seconds(contenders: dict[str, list[Work]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of a call by contender, each a list of calls with weights of their own, one after the other.

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
    for call in calls:  # whose results go at once, as those of a model do
        call()


def replayed(work: Work, device: torch.device) -> Work:
    """The work as a CUDA graph; on a CPU as it is."""
    return devices.graphed(work) if device.type == "cuda" else work


def seconds(work: Work, device: torch.device, repeats: int = 1) -> float:
    """Seconds of a piece of work that is done `repeats` times in a row."""
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
    """Median seconds that the host needs to enqueue a call, over batches of `calls` that nothing waits in."""
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
    """Median seconds of a piece of work as a caller that waits for its result sees it, host and device."""
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
