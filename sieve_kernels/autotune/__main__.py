"""Measure what is fastest on this machine and store it for `dispatch`: the implementation of each operator, and the
config (tiles, split-K, warps, stages) of each launch of a product.

python -m sieve_kernels.autotune measures the GPU; --device cpu measures operators with several implementations on a
CPU. The candidates of a call take turns, and their medians are compared. A candidate replaces the cost model's choice
only if it takes at most 97 % of its time. The file that it writes is described in `core/tuning_cache.py`.
"""

import argparse
import sys
from pathlib import Path

import torch

from sieve_kernels.autotune.measure import Measured, is_ranked
from sieve_kernels.core import dispatch, tuning_cache
from sieve_kernels.core.cases import CASES
from sieve_kernels.core.problems import Problem
from sieve_kernels.errors import SettingError

CASES_BY_OPERATOR = {case.name: case for case in CASES if case.name in dispatch.TABLE}
ROWS = (1, 2, 4, 8, 16, 64, 256, 1024, 4096)
RANKS = (64, 128, 512, 1024)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sieve_kernels.autotune", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--operators", nargs="+", choices=CASES_BY_OPERATOR, default=list(CASES_BY_OPERATOR))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--size", type=int, default=4096, help="inputs and outputs of the layers")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-configs", action="store_true", help="implementations only, with the configs there are")
    parser.add_argument("--output", type=Path, help="default: where dispatch looks")
    options = parser.parse_args(arguments)

    # Check settings, device and file first, so that no measurement is lost to an error at the end.
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

    # Every operator for every number of rows, and for every rank if its choice depends on one.
    measured = Measured(device, options.rounds, not options.no_configs)
    with torch.inference_mode():
        for case in (CASES_BY_OPERATOR[name] for name in options.operators):
            for dtype in (getattr(torch, name) for name in options.dtypes):
                for rows in options.rows:
                    for rank in options.ranks if is_ranked(case) else options.ranks[:1]:
                        for entry in measured.add(case, Problem(rows, options.size, options.size, rank, dtype)):
                            say(entry)

    # Store what was found.
    if not measured.choices and not measured.configs:
        print("nothing to choose: every call has a single implementation here")
        return 0
    name, configs = tuning_cache.device_name(device), list(measured.configs.values())
    tuning_cache.write(file, name, measured.choices, tuning_cache.hardware(device), configs)
    print(f"{len(measured.choices)} choices and {len(configs)} configs for {name} in {file}")
    return 0


def say(entry: dict) -> None:
    """Print a line for an entry of the file."""
    taken = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in entry["seconds"].items())
    if "kernel" in entry:
        call = f"{entry['kernel']} {entry['dtype']} {entry['M']}×{entry['N']}×{entry['K']} {entry['traits']}".strip()
        print(f"{call}: {min(entry['seconds'], key=entry['seconds'].get)} was fastest ({taken})", flush=True)
        return
    call = f"{entry['operator']} {entry['dtype']} rows {entry['rows']} rank {entry['rank']}"
    print(f"{call}: {entry['implementation']} ({taken})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
