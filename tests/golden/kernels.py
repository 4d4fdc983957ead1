"""Results of the kernels, stored in kernels.json: moves and renames must not change them.

    python -m tests.golden.kernels outputs programs     # stores both again
    python -m tests.golden.kernels --check              # lists differences to the stored results and exits with 1

`outputs`: a digest of every operator's values and gradients for small whole numbers, of which all sums are exact: the
same for each backend, instruction set and device. `programs`: a digest of the code (PTX) that Triton makes for a GPU
that need not be there, without names and lines. It depends on Triton's version.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import sieve_kernels as sk

STORED = Path(__file__).with_suffix(".json")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
ROWS = (1, 5, 37)
N, M, K, RANK, OTHER_RANK = 24, 40, 16, 8, 5


class Numbers:
    """Tensors of whole numbers from -1 to 1, most of them 0, the same on every machine."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu"):
        self._state, self._dtype, self._device = 1, dtype, device

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = []
        for _ in range(torch.Size(shape).numel()):
            self._state = self._state * 1103515245 + 12345 & 0x7FFFFFFF
            drawn.append((0, 0, 1, 0, -1, 0, 0, 1)[self._state >> 16 & 7])
        return torch.tensor(drawn).reshape(shape).to(self._device, dtype or self._dtype)

    def permutation(self, m: int) -> Tensor:
        return (torch.arange(m) * 7 + 3).remainder(m).to(self._device)  # 7 divides none of the sizes here


Call = tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Tensor]]


def calls(t: Numbers, rows: int) -> Iterator[tuple[str, Call]]:
    """Every operator with arguments for `rows` rows. Arguments that require gradients get them."""
    # Tensors that several operators take.
    x, pair, pivoted = t(rows, N), lambda r=RANK: (t(r, N), t(M, r)), (t(RANK, N), t(M - RANK, RANK))
    places, whole = t.permutation(M), t.permutation(K)

    # Layers, then their combinations, then the pointwise operators.
    yield "linear", (sk.linear, [x, t(M, N), t(M)])
    yield "lowrank_linear", (sk.lowrank_linear, [x, *pair(), t(M)])
    yield "lowrank_linear sliced", (lambda x, A, B: sk.lowrank_linear(x, A, B, rank=3), [x, *pair()])
    yield (
        "lowrank_linear_pivoted",
        (lambda x, A, C, b: sk.lowrank_linear_pivoted(x, A, C, places, b), [x, *pivoted, t(M)]),
    )
    yield (
        "lowrank_linear_group",
        (
            lambda x, A, B, C, D, b, c: sk.lowrank_linear_group(x, [A, C], [B, D], [b, c]),
            [x, *pair(), *pair(OTHER_RANK), t(M), t(M)],
        ),
    )
    yield (
        "lowrank_linear_population",
        (
            lambda x, A, B: sk.lowrank_linear_population(x, A, B, torch.tensor([3, 8, 5], device=x.device)),
            [t(3, rows, N), *pair()],
        ),
    )
    yield "lowrank_swiglu", (lambda *args: sk.lowrank_swiglu(*args, "relu"), [x, *pair(), *pair(OTHER_RANK)])
    yield (
        "lowrank_mlp",
        (
            lambda x, A, B, W, C, D: sk.lowrank_mlp(x, (A, B), (W,), (C, D, whole), "relu"),
            [x, *pair(), t(M, N), t(RANK, M), t(K - RANK, RANK)],
        ),
    )
    yield "act_mul", (lambda gate, up: sk.act_mul(gate, up, "relu"), [t(rows, M), t(rows, M)])


def values(t: Numbers, rows: int) -> Iterator[tuple[str, Tensor]]:
    """Operators without gradients, called."""
    x, y = t(rows, N), t(rows, M)
    mask = t(rows, dtype=torch.int64) == 0
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    yield "gram_", sk.gram_(x.new_zeros(N, N, dtype=sums), x)
    yield "gram_ masked", sk.gram_(x.new_zeros(N, N, dtype=sums), x, mask)
    yield "gram_ weighted", sk.gram_(x.new_zeros(N, N, dtype=sums), x, mask.to(sums) * 2)
    yield "cross_gram_", sk.cross_gram_(x.new_zeros(N, M, dtype=sums), x, y)
    yield "channel_sums", sk.channel_sums(x, mask)
    A, B = t(RANK, N, dtype=torch.int8), t(M, RANK, dtype=torch.int8)
    yield "lowrank_linear_quantized 8", _quantized(x, A, B)
    A, B = (sk.quantize_rows(factor.float(), 4)[0] for factor in (A, B))
    yield "lowrank_linear_quantized 4", _quantized(x, A, B)


def _quantized(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """With scales of 1: one a row for 8 bits, one for all columns here for 4."""
    scales = (torch.ones(q.shape[0], 1, device=x.device) for q in (A, B))
    A_scale, B_scale = (scale.flatten() if A.dtype == torch.int8 else scale for scale in scales)
    return sk.lowrank_linear_quantized(x, A, A_scale, B, B_scale)


def outputs(
    device: torch.device | str = "cpu",
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    counts: tuple[int, ...] = ROWS,
) -> dict[str, str]:
    """A digest of every operator's results, by operator, dtype and rows."""
    found = {}
    for dtype in dtypes:
        for rows in counts:
            where = f"{str(dtype).removeprefix('torch.')} {rows}"
            for name, (function, tensors) in calls(Numbers(dtype, device), rows):
                with torch.no_grad():
                    found[f"{name} {where}"] = _digest(_tuple(function(*tensors)))
                leaves = [tensor.clone().requires_grad_() for tensor in tensors]
                results = _tuple(function(*leaves))
                grads = Numbers(dtype, device)
                made = torch.autograd.grad(results, leaves, [grads(*result.shape) for result in results])
                found[f"{name} gradients {where}"] = _digest(made)
            found |= {f"{name} {where}": _digest([result]) for name, result in values(Numbers(dtype, device), rows)}
    return found


def _tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def _digest(tensors) -> str:
    """Digest of shapes, dtypes and rounded values: fixed-point products and norms may differ in the last digit."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().round().long().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


PROGRAMS = {"targets": ("sm_90", "sm_80"), "shapes": ("aligned", "few"), "dtype": torch.bfloat16}


def programs() -> dict[str, list[str]]:
    """Digests of the code of every launch, in order, by case, shape class and target. Not in Triton's interpreter."""
    import triton
    from triton.compiler import ASTSource

    from sieve_kernels.aot.launch import gpu_target, launches, pretended
    from sieve_kernels.aot.targets import TARGETS
    from sieve_kernels.core.cases import CASES
    from sieve_kernels.core.problems import PROBLEMS

    made: dict[str, list[str]] = {}
    for target in map(TARGETS.get, PROGRAMS["targets"]):
        for case in CASES:
            if PROGRAMS["dtype"] not in case.dtypes or target.name not in case.targets:
                continue
            for shape, problem in case.problems(PROBLEMS, PROGRAMS["dtype"]).items():
                if shape not in PROGRAMS["shapes"]:
                    continue
                codes = []
                for launch in launches(case, problem, target):
                    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
                    with pretended(target):
                        kernel = triton.compile(source, target=gpu_target(target), options=launch.options)
                    codes.append(_code(kernel.asm["ptx"]))
                made[f"{case.name} {shape} {target.name}"] = codes
    return {"triton": triton.__version__} | made


def _code(ptx: str) -> str:
    """Digest of a program without the names and lines of its source."""
    entry = re.search(r"\.entry\s+(\w+)", ptx).group(1)
    ptx = ptx.partition("\t.section\t.debug")[0].replace(entry, "kernel")
    lines = [re.sub(r"//.*", "", line).rstrip() for line in ptx.splitlines()]
    kept = [line for line in lines if line and not re.match(r"\s*\.(?:loc|file|section)|\$L__(?:func|tmp)\w*:", line)]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def made(part: str) -> dict:
    """The current results of a part. Programs come from a process in which Triton compiles."""
    if part == "outputs":
        return outputs()
    command = [sys.executable, "-m", "tests.golden.kernels", "print"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def stored() -> dict:
    return json.loads(STORED.read_text()) if STORED.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=["outputs", "programs"], choices=("outputs", "programs", "print"))
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.parts == ["print"]:
        json.dump(programs(), sys.stdout)
        return 0
    results, before = {part: made(part) for part in options.parts}, stored()
    if not options.check:
        STORED.write_text(json.dumps(before | results, indent=1, sort_keys=True) + "\n")
        return 0
    differ = [
        f"{part}: {name}"
        for part, found in results.items()
        for name in sorted(found.keys() | before[part].keys())
        if found.get(name) != before[part].get(name)
    ]
    print("\n".join(differ) or "nothing differs")
    return len(differ) > 0


if __name__ == "__main__":
    sys.exit(main())
