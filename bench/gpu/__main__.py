"""Test the kernels on the GPU, measure the benchmark table, and store the results.

python -m bench.gpu --minutes 10 writes summary.json, summary.md, tests.txt and choices.json under $OUT, or under
bench/results/gpu/ in a folder named after the GPU. It needs torch, Triton, NumPy, SciPy and pytest; the decoder is
measured if transformers is installed. The parts run in order of importance, each for its portion of the time, and
report the jobs that they left out.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import torch

from bench import devices
from bench.gpu.budget import Budget
from bench.gpu.parts import PARTS
from bench.gpu.runner import Outcome, Run
from bench.gpu.sizes import FULL, SMOKE
from bench.gpu.summary import Summary
from bench.gpu.wanted import WANTED, holds

RESULTS = Path(__file__).parents[1] / "results" / "gpu"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    about = "; ".join(f"{part.name}: {part.about}" for part in PARTS.values())
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help=f"in this order ({about})")
    parser.add_argument("--minutes", type=float, default=10, help="of the whole run (%(default)s)")
    parser.add_argument("--commit", help="what is measured, where the checkout has no history")
    parser.add_argument("--smoke", action="store_true", help="try the program: tiny sizes, on a CPU if there is no GPU")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error("--minutes must be positive")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # The device, and the folder of its results.
    gpu = torch.cuda.is_available()
    if not gpu and not options.smoke:
        print("no GPU found, so nothing was measured; --smoke tries the program without one", file=sys.stderr)
        return 2
    device = torch.device("cuda" if gpu else "cpu")
    identity = devices.identity(device)
    if options.commit:
        identity["commit"] = options.commit
    name = re.sub(r"\W+", "-", identity["device"]).strip("-") + ("-smoke" if options.smoke else "")
    summary = Summary(Path(os.environ.get("OUT") or RESULTS / name), identity)

    # Each part runs in a process of its own, so that a broken device context ends with it.
    parts = [PARTS[name] for name in options.parts]
    budget = Budget(60 * options.minutes, [part.weight for part in parts])
    worker = ["--device", device.type, *(["--smoke"] if options.smoke else [])]
    for part in parts:
        jobs = part.jobs(SMOKE if options.smoke else FULL)
        summary.begin({job.name: job.cells for job in jobs})
        seconds, started = budget.next(), time.monotonic()
        print(f"{part.name} ({part.about}): up to {seconds:.0f} s", flush=True)
        outcome = Run(part, jobs, worker, summary.folder, summary.add).within(seconds)
        _say(outcome, time.monotonic() - started)

    # The goals of the table, met or missed.
    for name in WANTED:
        if name in summary.cells:
            print("" if holds(name, summary.cells[name]) else "MISSED", summary.row(name).strip("| "))
    print(f"results in {summary.folder}")
    return 1 if summary.failed or summary.cells.get("tests.failed") else 0


def _say(outcome: Outcome, seconds: float) -> None:
    """Print the outcome of a part."""
    print(f"  {len(outcome.finished)} jobs done in {seconds:.0f} s")
    for name, why in outcome.failed.items():
        print(f"  FAILED {name}: {why}")
    if outcome.left_out:
        reasons = sorted(set(outcome.left_out.values()))
        print(f"  left out ({'; '.join(reasons)}): {', '.join(outcome.left_out)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
