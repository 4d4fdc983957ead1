"""Measure which implementation of each operator is fastest on this machine, and remember it for `dispatch`.

python -m sieve_kernels.autotune measures the GPU; --device cpu measures a CPU where more than one implementation can
serve. The candidates of a call take turns, medians are compared, and an implementation replaces the one that the cost
model prefers only where it takes at most 97 % of its time. The file that it writes is described in
`core/tuning_cache.py`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sieve_kernels.core import dispatch, tuning_cache
from sieve_kernels.core.cases import CASES, Case, Problem
from sieve_kernels.errors import SettingError

CASES_BY_OPERATOR = {case.name: case for case in CASES if case.name in dispatch.TABLE}
ROWS = (1, 2, 4, 8, 16, 64, 256, 1024, 4096)
RANKS = (64, 128, 512, 1024)
GAIN = 0.97
FLUSH = 256 << 20
"""Bytes that are written between measurements on a GPU, so that no operand is still in its cache."""


def candidates(operator: str, call: dispatch.Call) -> dict[str, Callable]:
    """Functions by name that can serve a call, the one that the cost model prefers first."""
    able = [one for one in dispatch.TABLE[operator] if one.supports(call)]
    if dispatch.INTERPRETED:
        able = [one for one in able if not one.name.startswith("triton")]
    able.sort(key=lambda one: not one.prefers(call))
    return {one.name: one.load() for one in able}


def medians(works: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each of `works`, which take turns, after two rounds to warm up; each round another begins."""
    clock = _gpu_clock if device.type == "cuda" else cpu_clock
    names, times = list(works), {name: [] for name in works}
    for turn in range(rounds + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken = clock(works[name])
            if turn >= 2:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def cpu_clock(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _gpu_clock(work: Callable[[], object]) -> float:
    """Seconds that the GPU is busy with a call, its operands not in the cache."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSH, dtype=torch.int8, device="cuda").zero_()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end)


def measure(case: Case, problem: Problem, device: torch.device, rounds: int) -> dict | None:
    """An entry of the file for `case`; None where there is nothing to choose."""

    def make(*sizes: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        dtype = dtype or problem.dtype
        if dtype.is_floating_point:
            return torch.randn(sizes, device=device).to(dtype)
        if len(sizes) == 1 and dtype == torch.int64:
            return torch.arange(*sizes, device=device)  # a permutation
        return torch.ones(sizes, dtype=dtype, device=device)

    call = dispatch.Call(device, problem.dtype, problem.T, problem.r if _ranked(case) else 0)
    functions = candidates(case.name, call)
    if len(functions) < 2:
        return None
    arguments = case.arguments(make, problem)
    taken = medians({name: lambda f=f: f(*arguments) for name, f in functions.items()}, device, rounds)
    preferred, fastest = next(iter(taken)), min(taken, key=taken.get)
    return {
        "operator": case.name,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "rows": tuning_cache.shape_class(call.rows),
        "rank": tuning_cache.shape_class(call.rank),
        "implementation": fastest if taken[fastest] <= GAIN * taken[preferred] else preferred,
        "seconds": taken,
    }


def _ranked(case: Case) -> bool:
    return case.name.startswith("lowrank_")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sieve_kernels.autotune", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--operators", nargs="+", choices=CASES_BY_OPERATOR, default=list(CASES_BY_OPERATOR))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--size", type=int, default=4096, help="inputs and outputs of the layers")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="default: where dispatch looks")
    options = parser.parse_args(arguments)
    try:
        dispatch.check_settings()
    except SettingError as error:
        print(error, file=sys.stderr)
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU found, so nothing was measured; --device cpu measures what a CPU can choose", file=sys.stderr)
        return 2
    device = torch.device(options.device, torch.cuda.current_device() if options.device == "cuda" else None)
    file = options.output or tuning_cache.path(device)
    if file is None:
        print(f"{tuning_cache.VARIABLE}=off: name a file with --output", file=sys.stderr)
        return 2
    if not tuning_cache.may_write(file):
        print(f"{file} is no file of choices, or damaged: remove it or name another with --output", file=sys.stderr)
        return 2

    entries = []
    with torch.inference_mode():
        for case in (CASES_BY_OPERATOR[name] for name in options.operators):
            for dtype in (getattr(torch, name) for name in options.dtypes):
                for rows in options.rows:
                    for rank in options.ranks if _ranked(case) else options.ranks[:1]:
                        problem = Problem(rows, options.size, options.size, rank, dtype)
                        entry = measure(case, problem, device, options.rounds)
                        if entry:
                            entries.append(entry)
                            _say(entry)
    if not entries:
        print("nothing to choose: every call has a single implementation here")
        return 0
    tuning_cache.write(file, tuning_cache.device_name(device), entries, tuning_cache.hardware(device))
    print(f"{len(entries)} choices for {tuning_cache.device_name(device)} in {file}")
    return 0


def _say(entry: dict) -> None:
    taken = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in entry["seconds"].items())
    call = f"{entry['operator']} {entry['dtype']} rows {entry['rows']} rank {entry['rank']}"
    print(f"{call}: {entry['implementation']} ({taken})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
