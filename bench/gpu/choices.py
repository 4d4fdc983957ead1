"""Which implementation is fastest on this device, measured by `sieve_kernels.tune` for the operators one by one."""

import json
import shutil

from bench.gpu.job import Job, LeftOut, Place
from bench.gpu.sizes import Sizes
from sieve_kernels import tune, tuned

FILE = "choices.json"


def jobs(sizes: Sizes) -> list[Job]:
    """What is chosen is written where `dispatch` looks, and copied beside the results."""
    return [
        Job(f"choices.{name}", (f"choices.{name}",), _measure(name), seconds=15, patience=600)
        for name in tune.CASES_BY_OPERATOR
    ]


def _measure(operator: str):
    def run(place: Place) -> dict[str, float]:
        file = tuned.path(place.device)
        if file is None:
            raise LeftOut(f"{tuned.VARIABLE}=off")
        if tune.main(["--device", place.device.type, "--operators", operator]):
            raise RuntimeError("the measurement failed")
        if not file.exists():
            return {f"choices.{operator}": 0.0}
        shutil.copy(file, place.folder / FILE)
        chosen = json.loads(file.read_text())["choices"]
        return {f"choices.{operator}": float(sum(entry["operator"] == operator for entry in chosen))}

    return run
