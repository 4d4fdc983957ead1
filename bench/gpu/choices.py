"""Which implementation is fastest on this device, measured by `sieve_kernels.autotune` for the operators one by one.

The choices stand beside the results, and on a GPU also where the package ships them: what is committed there serves
GPUs of this name, and of its architecture.
"""

import json
import shutil

from bench.gpu.job import Job, Place
from bench.gpu.sizes import Sizes
from sieve_kernels.autotune import __main__ as tune
from sieve_kernels.core import tuning_cache

FILE = "choices.json"


def jobs(sizes: Sizes) -> list[Job]:
    return [
        Job(f"choices.{name}", (f"choices.{name}",), _measure(name, sizes), seconds=15, patience=600)
        for name in tune.CASES_BY_OPERATOR
    ]


def _measure(operator: str, sizes: Sizes):
    def run(place: Place) -> dict[str, float]:
        file = place.folder / FILE
        options = ["--device", place.device.type, "--operators", operator, "--output", str(file), *sizes.choices]
        if tune.main(options):
            raise RuntimeError("sieve_kernels.autotune has failed")
        if not file.exists():  # nothing to choose yet
            return {f"choices.{operator}": 0.0}
        if sizes.ships:
            tuning_cache.SHIPPED.mkdir(exist_ok=True)
            shutil.copy(file, tuning_cache.SHIPPED / tuning_cache.file_name(tuning_cache.device_name(place.device)))
        chosen = json.loads(file.read_text(encoding="utf-8"))["choices"]
        return {f"choices.{operator}": float(sum(entry["operator"] == operator for entry in chosen))}

    return run
