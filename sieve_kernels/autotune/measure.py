"""Measure the fastest implementation of a call, and the fastest configs of its launches; candidates take turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from sieve_kernels.autotune.config import ChosenConfig, GemmConfig
from sieve_kernels.core import dispatch, tuning_cache
from sieve_kernels.core.cases import Case
from sieve_kernels.core.problems import Problem

GAIN = 0.97
"""A candidate replaces the cost model's choice if it takes at most this fraction of its time, so that noise does not
decide."""

FLUSH = 256 << 20
"""Bytes written between measurements on a GPU, so that no operand is still in its cache."""

Work = Callable[[], object]


def medians(works: dict[str, Work], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each of `works`, which take turns in a rotating order, after two warm-up rounds."""
    clock = _gpu_clock if device.type == "cuda" else cpu_clock
    names, times = list(works), {name: [] for name in works}
    for turn in range(rounds + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken = clock(works[name])
            if turn >= 2:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def cpu_clock(work: Work) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _gpu_clock(work: Work) -> float:
    """Seconds that the GPU is busy with a call whose operands are not in the cache."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSH, dtype=torch.int8, device="cuda").zero_()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end)


def fastest(taken: dict[str, float]) -> str:
    """The name with the least time, or the first name if none gains enough over it."""
    preferred, best = next(iter(taken)), min(taken, key=taken.get)
    return best if taken[best] <= GAIN * taken[preferred] else preferred


def candidates(operator: str, call: dispatch.Call) -> list[dispatch.Implementation]:
    """The implementations that support a call, the cost model's choice first."""
    able = [one for one in dispatch.TABLE[operator] if one.supports(call)]
    if dispatch.INTERPRETED:
        able = [one for one in able if not one.name.startswith("triton")]
    return sorted(able, key=lambda one: not one.prefers(call))


def is_ranked(case: Case) -> bool:
    """Whether an operator's choice depends on a rank."""
    return case.name.startswith("lowrank_")


def arguments_of(case: Case, problem: Problem, device: torch.device) -> tuple:
    """Arguments for a case: random floats; permutations where integers are needed; ones for scales."""

    def make(*sizes: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        dtype = dtype or problem.dtype
        if dtype.is_floating_point:
            return torch.randn(sizes, device=device).to(dtype)
        if len(sizes) == 1 and dtype == torch.int64:
            return torch.arange(*sizes, device=device)
        return torch.ones(sizes, dtype=dtype, device=device)

    return case.arguments(make, problem)


class Measured:
    """Collects the entries of the file. A launch is measured once for its class of shapes."""

    def __init__(self, device: torch.device, rounds: int, with_configs: bool = True):
        self.device, self.rounds, self.with_configs = device, rounds, with_configs
        self.choices: list[dict] = []
        self.configs: dict[tuple, dict] = {}

    def add(self, case: Case, problem: Problem) -> list[dict]:
        """Measure an operator for a problem; returns the new entries. There are none if there is nothing to choose."""
        call = dispatch.Call(self.device, problem.dtype, problem.T, problem.r if is_ranked(case) else 0)
        return self.add_call(case.name, call, arguments_of(case, problem, self.device))

    def add_call(self, operator: str, call: dispatch.Call, arguments: Sequence) -> list[dict]:
        """Measure an operator for arguments as its implementations take them; returns the new entries."""
        able, before, works = candidates(operator, call), len(self.configs), {}
        # First the configs of each implementation, so that it is compared at its best.
        for one in able:
            with ExitStack() as held:
                for config in self._configs(one, arguments) if self.with_configs else ():
                    held.enter_context(config.kernel.trying(config.shape, config.config))
                works[one.name] = prepared(one.load(), arguments, self.device)
        made = list(self.configs.values())[before:]
        # Then the implementations against each other.
        if len(works) > 1:
            taken = medians(works, self.device, self.rounds)
            made.append(
                {
                    "operator": operator,
                    "dtype": str(call.dtype).removeprefix("torch."),
                    "rows": tuning_cache.shape_class(call.rows),
                    "rank": tuning_cache.shape_class(call.rank),
                    "implementation": fastest(taken),
                    "seconds": taken,
                }
            )
            self.choices.append(made[-1])
        return made

    def _configs(self, one: dispatch.Implementation, arguments: Sequence) -> list[ChosenConfig]:
        """Find the fastest config of every launch of an implementation, launch by launch."""
        found: list[ChosenConfig] = []
        for launch in dispatch.configs(one, arguments):
            key = (launch.kernel.name, *launch.shape.key)
            if key not in self.configs:
                entry = config_entry(launch, self._times(one, arguments, launch, found))
                if entry is None:
                    continue
                self.configs[key] = entry
            config = GemmConfig.read(self.configs[key]["config"])
            if launch.kernel.supports(config, launch.shape):
                found.append(ChosenConfig(launch.kernel, launch.shape, config, "measured"))
        return found

    def _times(
        self, one: dispatch.Implementation, arguments: Sequence, launch: ChosenConfig, held: Sequence[ChosenConfig]
    ) -> dict[GemmConfig, float]:
        """Config of one launch → seconds of the call, with the configs found for earlier launches."""
        works: dict[GemmConfig, Work] = {}
        for config in launch.kernel.candidates(launch.shape):
            with ExitStack() as stack:
                for other in held:
                    stack.enter_context(other.kernel.trying(other.shape, other.config))
                stack.enter_context(launch.kernel.trying(launch.shape, config))
                try:
                    works[config] = prepared(one.load(), arguments, self.device)
                except Exception as error:
                    # Skip a candidate that this GPU or this version of Triton cannot compile.
                    print(f"{launch.kernel.name} {launch.shape}: {config} left out: {str(error)[:100]}", flush=True)
        return medians(works, self.device, self.rounds) if len(works) > 1 else {}


def compile_candidates(operator: str, call: dispatch.Call, arguments: Sequence, share: int, count: int) -> None:
    """Compile part `share` of `count` parts of the candidates that `add_call` will measure: parallel processes fill the
    cache of Triton's compiler in a fraction of the time."""
    for one in candidates(operator, call):
        for launch in dispatch.configs(one, arguments):
            for config in launch.kernel.candidates(launch.shape)[share::count]:
                with launch.kernel.trying(launch.shape, config):
                    try:
                        one.load()(*arguments)
                    except Exception as error:
                        print(f"{launch.kernel.name} {launch.shape}: {config}: {str(error)[:100]}", flush=True)


def prepared(function: Callable, arguments: Sequence, device: torch.device) -> Work:
    """The call with its current implementation and configs, which later decisions do not change; on a GPU a CUDA graph,
    which excludes host time."""
    run = getattr(function, "prepare", lambda *_: function)(*arguments)
    run(*arguments)
    if device.type != "cuda":
        return lambda: run(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(*arguments)
    return graph.replay


def config_entry(launch: ChosenConfig, taken: dict[GemmConfig, float]) -> dict | None:
    """The file's entry for a launch with these times of configs; None if there was nothing to choose."""
    if not taken:
        return None
    dtype, bits, M, N, K, traits = launch.shape.key
    where = {"kernel": launch.kernel.name, "dtype": dtype, "bits": bits, "M": M, "N": N, "K": K, "traits": traits}
    names = {str(config): config for config in taken}
    seconds = {str(config): value for config, value in taken.items()}
    return where | {"config": vars(names[fastest(seconds)]), "seconds": seconds}
