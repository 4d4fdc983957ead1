"""What all contenders of a task and a seed share: the model, and statistics that are collected once."""

import copy
import ctypes
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import sieve
from sieve.calibration.statistics import Statistics
from sieve.compression.plan import Plan
from sieve.models.linears import prunable
from sieve.models.matrix import Matrix
from sieve.registry import method_named
from sieve.tasks import Example, Task, load_task
from sieve.tasks.general import general_text

TOKENS = 32_768  # of a calibration pass, as on the command line
MULTIPLE = 8  # of ranks, as on the command line for a CPU
TEST = {"geography": 500, "boolq": 100, "pubmed_qa": 60}
"""How many examples of the test split are scored, for tasks whose questions are long or many."""


@contextmanager
def metered() -> Iterator[dict[str, float]]:
    """Fills a row's `seconds`, `cpu_seconds` (of all threads) and `peak_bytes` when the block ends.

    peak_bytes is what this process held at most beyond what it held before (Linux: VmHWM, reset first, less VmRSS).
    """
    row: dict[str, float] = {}
    ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator keeps would hide new allocations
    Path("/proc/self/clear_refs").write_text("5")
    before, started, cpu = _status("VmRSS"), time.perf_counter(), time.process_time()
    yield row
    row["seconds"] = round(time.perf_counter() - started, 4)
    row["cpu_seconds"] = round(time.process_time() - cpu, 4)
    row["peak_bytes"] = max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    """A value in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


@dataclass
class Setting:
    """A model and a task with one seed of its splits. `cache`: folder for statistics and their costs."""

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
        """The same setting with shared inputs."""
        model = sieve.share_inputs_(copy.deepcopy(self.model))
        return replace(self, model=model, cache=self.cache / "shared")

    @cached_property
    def test(self) -> list[Example]:
        return self.task.splits(self.seed)["test"][: TEST.get(self.task_name)]

    @cached_property
    def reference(self) -> Statistics:
        """Gram matrices of every matrix's inputs; all contenders' output errors are computed from them."""
        return self.statistics("svd_llm")

    def statistics(self, method: str, general: bool = False) -> Statistics:
        """The statistics that `method` needs, of the task or of general text; collected once and cached."""
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
        """The cost of collecting these statistics."""
        self.statistics(method, general)
        return json.loads(self._path(method, general).with_suffix(".json").read_text())

    def _path(self, method: str, general: bool) -> Path:
        data = "general" if general else f"{self.task.name}-{self.seed}"
        return self.cache / f"{data}-{method_named(method).kind}.safetensors"

    def plan(self, kept: float, matrices: Mapping[str, Matrix] | None = None) -> Plan:
        """Every matrix at the kept fraction: of the model's matrices, or of those of a compression space."""
        return Plan.uniform((matrices or self.matrices).values(), kept, MULTIPLE)
