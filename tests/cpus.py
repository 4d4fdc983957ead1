"""`make test-cpus`: run the tests of CPU kernels and of likelihoods as on other processors.

Torch's kernels (ATEN_CPU_CAPABILITY), and with them oneDNN and MKL, are limited to AVX2 and to no vectors. The compiled
kernels (SIEVE_KERNELS_ISA) are limited to each instruction set of this processor, and switched off. Threads are one and
two. Not every combination runs, but every value of each setting does, and, from four combinations on, every pair of
torch's capability and number of threads.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from sieve_kernels.core import library

TESTS = Path(__file__).parent
KERNELS = TESTS / "sieve_kernels"
NOT_OF_CPUS = (
    "aot", "bench", "columns", "config", "dispatch", "gemm", "gram_tma", "import_order", "streams", "tile_launch",
    "traffic", "training", "tune",
)  # fmt: skip
"""Prefixes of the test files' names."""
LIKELIHOODS = TESTS / "sieve" / "evaluation" / "test_likelihood.py"
WORKERS = ("-n", "2", "--dist", "worksteal")
CAPABILITIES = ("default", "avx2")
BELOW_TORCH = {
    "default": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
}
OF_CPUS = "not triton and not compiles and not opcheck and not torch_gpu and not torch_training"
"""Leaves out tests of GPU paths, of backward passes, of Triton's interpreter and of tracing."""


def files() -> list[Path]:
    """The tests' files."""
    left_out = tuple(f"test_{name}" for name in NOT_OF_CPUS)
    return [*sorted(file for file in KERNELS.glob("test_*.py") if not file.stem.startswith(left_out)), LIKELIHOODS]


def combinations(isas: tuple[str, ...]) -> list[dict[str, str]]:
    """Environment variables of each run."""
    runs = []
    for i in range(max(len(isas), 2)):
        capability = CAPABILITIES[i % 2]
        runs.append(
            {
                "ATEN_CPU_CAPABILITY": capability,
                library.VARIABLE: isas[i % len(isas)],
                "OMP_NUM_THREADS": str(1 + (i + i // 2) % 2),
                **BELOW_TORCH[capability],
            }
        )
    return runs


def main() -> int:
    """Run all combinations, say which fail, and return how many do."""
    print(library.status())
    command = [sys.executable, "-m", "pytest", "-q", *WORKERS, "-p", "no:cacheprovider", "-k", OF_CPUS]
    command += map(str, files())
    failed = []
    for variables in combinations(library.available()):
        name, started = " ".join(f"{key}={value}" for key, value in variables.items()), time.monotonic()
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
        verdict = "passed" if done.returncode == 0 else "FAILED"
        print(f"{verdict} in {time.monotonic() - started:.0f} s: {name}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout[-5000:], done.stderr[-2000:], sep="\n", flush=True)
    print("all passed" if not failed else "\n".join(["failed:", *failed]))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
