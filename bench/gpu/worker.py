"""A process that runs the jobs of a part and writes the outcome of each to a file, one JSON line each.

It is a process of its own, so that a kernel that hangs or breaks the device's context costs only its own job.
"""

import argparse
import gc
import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TextIO

import torch

from bench.gpu.device import serves
from bench.gpu.job import Job, LeftOut, Place
from bench.gpu.parts import PARTS
from bench.gpu.runner import LATE
from bench.gpu.sizes import FULL, SMOKE

SPOILED = 3
"""Exit status when the device no longer works."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.worker", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--skip", nargs="*", default=[])
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that processes that a job has started end with it
    place = Place(torch.device(options.device), time.monotonic() + options.seconds, options.folder)
    torch.manual_seed(0)
    with options.log.open("a", buffering=1, encoding="utf-8") as log:
        for job in PARTS[options.part].jobs(SMOKE if options.smoke else FULL):
            if job.name not in options.skip and not _do(job, place, log):
                return SPOILED
    return 0


def _do(job: Job, place: Place, log: TextIO) -> bool:
    """Run a job and write its outcome; returns False if the device no longer works."""

    def tell(**event) -> None:
        log.write(json.dumps({"job": job.name, **event}) + "\n")

    if place.left() < job.seconds:
        tell(left_out=LATE)
        return True
    tell(begun=True)
    healthy = True
    try:
        cells = job.run(place)
        tell(cells={name: float(value) for name, value in cells.items()})
    except LeftOut as reason:
        tell(left_out=str(reason))
    except Exception as error:
        with (place.folder / "errors.txt").open("a", encoding="utf-8") as errors:
            print(job.name, traceback.format_exc(), sep="\n", file=errors)
        healthy = serves(place.device)
        tell(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    gc.collect()
    if healthy and place.device.type == "cuda":
        torch.cuda.empty_cache()
    return healthy


if __name__ == "__main__":
    sys.exit(main())
