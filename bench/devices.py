"""The measured device: its identity, CUDA graphs, and its roofline."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from sieve_kernels.autotune.measure import cpu_clock
from sieve_kernels.core import tuning_cache
from sieve_kernels.core.wide_products import wide_products

PEAKS = {
    "A100": (312, 19.5, 2039),
    "H100": (989, 67, 3350),
    "H200": (989, 67, 4800),
    "B200": (2250, 80, 8000),
    "L40S": (362, 91.6, 864),
    "RTX 4090": (165, 82.6, 1008),
    "MI300X": (1307, 163.4, 5300),
}
"""Dense 16-bit and float32 TFLOP/s and GB/s by a part of the device's name, from the vendors' data sheets (SXM and OAM
versions). The 16-bit peak is that of the tensor cores with float32 accumulators."""


@dataclass(frozen=True)
class Roofline:
    """Peak TFLOP/s and GB/s, and their source."""

    tflops: float
    gbs: float
    source: str

    def share(self, flops: int, size: int, seconds: float) -> float:
        """The minimum time for these operations and bytes, divided by the time taken."""
        return max(flops / (1e12 * self.tflops), size / (1e9 * self.gbs)) / seconds


def roofline(device: torch.device, dtype: torch.dtype) -> Roofline | None:
    """The roofline of a known GPU, from its data sheet, or of a CPU, measured here; None for an unknown GPU."""
    if device.type == "cpu":
        return _measured(dtype)
    found = [peaks for part, peaks in PEAKS.items() if part in torch.cuda.get_device_name(device)]
    if not found:
        return None
    narrow, wide, gbs = found[0]
    return Roofline(narrow if dtype.itemsize == 2 else wide, gbs, "data sheet")


@lru_cache
def _measured(dtype: torch.dtype) -> Roofline:
    """The best of several runs: products of 1536×1536 matrices, and 256 MiB read once by whichever call is faster."""
    a, b = torch.randn(2, 1536, 1536).to(dtype)
    multiply = wide_products(torch.matmul)
    numbers = torch.ones(64 << 20, dtype=torch.float32)
    product = min(cpu_clock(lambda: multiply(a, b)) for _ in range(10))
    reading = min(cpu_clock(read) for read in (numbers.sum, lambda: torch.dot(numbers, numbers)) for _ in range(10))
    return Roofline(2 * 1536**3 / product / 1e12, numbers.nbytes / reading / 1e9, "measured")


def graphed(work: Callable[[], object]) -> Callable[[], None]:
    """The work recorded as a CUDA graph: replaying it costs no Python and no separate launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def identity(device: torch.device) -> dict[str, str]:
    """What identifies a result: device, driver, versions, commit."""
    return {
        "device": tuning_cache.device_name(device),
        "driver": _driver(device),
        "torch": torch.__version__,
        "triton": _triton(),
        "commit": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
    }


def _driver(device: torch.device) -> str:
    if device.type == "cpu":
        return ""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0]


def _triton() -> str:
    try:
        import triton
    except ModuleNotFoundError:
        return ""
    return triton.__version__


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
