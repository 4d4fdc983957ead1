"""What all contenders of a task and a seed have in common: the model, and statistics that are collected once."""

import copy
import ctypes
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import sieve
from sieve.calibration.statistics import Statistics
from sieve.compression.plan import Plan
from sieve.models.linears import prunable
from sieve.registry import method_named
from sieve.tasks import Example, Task, load_task
from sieve.tasks.general import general_text

TOKENS = 32_768  # of a calibration pass: the command line's
MULTIPLE = 8  # of ranks, as on the command line of a CPU
TEST = {"geography": 500, "boolq": 100, "pubmed_qa": 60}
"""Examples of the test split that are scored, where it has more than that; long or many questions cost most."""


@contextmanager
def metered() -> Iterator[dict[str, float]]:
    """Fills a row's `seconds`, `cpu_seconds` (of all threads) and `peak_bytes` when the block ends.

    peak_bytes is what this process held at most beyond what it held before (Linux: VmHWM, reset first, less VmRSS).
    """
    row: dict[str, float] = {}
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")
    before, started, cpu = _status("VmRSS"), time.perf_counter(), time.process_time()
    yield row
    row["seconds"] = round(time.perf_counter() - started, 4)
    row["cpu_seconds"] = round(time.process_time() - cpu, 4)
    row["peak_bytes"] = max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    """Bytes, by a name in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


@dataclass
class Setting:
    """A model and a task with one seed of its splits. `cache` keeps statistics and what they cost."""

    model: Any
    tokenizer: Any
    task_name: str
    seed: int
    cache: Path
    tokens: int = TOKENS

    @cached_property
    def task(self) -> Task:
        return load_task(self.task_name)

    @cached_property
    def matrices(self) -> dict:
        return prunable(self.model)

    @cached_property
    def shared(self) -> "Setting":
        """The same, of the model with shared inputs."""
        model = sieve.share_inputs_(copy.deepcopy(self.model))
        return replace(self, model=model, cache=self.cache / "shared")

    @cached_property
    def test(self) -> list[Example]:
        return self.task.splits(self.seed)["test"][: TEST.get(self.task_name)]

    @cached_property
    def reference(self) -> Statistics:
        """Grams of the inputs of every matrix, which all contenders' output errors are computed from."""
        return self.statistics("svd_llm")

    def statistics(self, method: str, general: bool = False) -> Statistics:
        """What `method` asks for, of the task or of general text: from the cache, or collected into it."""
        path = self._path(method, general)
        with metered() as row:
            statistics = sieve.calibrate(
                self.model, self.tokenizer, general_text() if general else self.task, self.tokens, method,
                0 if general else self.seed, path=path,
            )  # fmt: skip
        record = path.with_suffix(".json")
        if not record.exists():
            record.write_text(json.dumps(row | {"tokens": statistics.tokens}))
        return statistics

    def cost(self, method: str, general: bool = False) -> dict[str, float]:
        """What collecting these statistics took."""
        self.statistics(method, general)
        return json.loads(self._path(method, general).with_suffix(".json").read_text())

    def _path(self, method: str, general: bool) -> Path:
        data = "general" if general else f"{self.task.name}-{self.seed}"
        return self.cache / f"{data}-{method_named(method).kind}.safetensors"

    def plan(self, kept: float) -> Plan:
        """Uniform ranks."""
        return Plan.uniform(self.matrices.values(), kept, MULTIPLE)
