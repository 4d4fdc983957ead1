"""Compile kernels for GPUs that this machine lacks, and read the compiler's results.

`launch` records what the launchers hand to Triton; each launch is compiled for its target and does not run.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
import triton
from triton.compiler import ASTSource, CompiledKernel

from sieve_kernels.aot.launch import gpu_target, launches, pretended
from sieve_kernels.aot.targets import KIB, PARTITIONS, TARGETS, Target
from sieve_kernels.core.cases import CASES, Case
from sieve_kernels.core.problems import DTYPES, PROBLEMS, Problem


@dataclass(frozen=True)
class Program:
    """Static properties of a compiled kernel. Counts show which path it takes, not its speed."""

    kernel: str
    tile: str
    warps: int
    stages: int
    registers: int  # per thread
    spills: int  # bytes of stack per thread and spilled registers
    shared: int  # bytes per block
    tensor_memory: int  # columns per block
    occupancy: float  # fraction of the warps that a multiprocessor can hold
    instructions: dict[str, int]


def rows(target: str, dtype: str, cases: tuple[str, ...], shapes: tuple[str, ...]) -> list[dict]:
    """The table's rows for a target and dtype, for the named cases and shape classes; one row per program."""
    kind = getattr(torch, dtype)
    found = []
    for case in CASES:
        if case.name not in cases or kind not in case.dtypes or target not in case.targets:
            continue
        for shape, problem in case.problems(PROBLEMS, kind).items():
            if shape in shapes and shape in DTYPES[kind]:
                where = {"case": case.name, "shape": shape, "dtype": dtype, "target": target}
                try:
                    made = programs(case, problem, TARGETS[target])
                except Exception as error:
                    raise RuntimeError(f"{' '.join(where.values())} does not compile: {error}") from error
                found += [where | asdict(program) for program in made]
    return found


def programs(case: Case, problem: Problem, target: Target) -> list[Program]:
    """The different programs that `case` launches for `problem` on `target`, in order."""
    compiled = []
    for launch in launches(case, problem, target):
        source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
        with pretended(target):
            kernel = triton.compile(source, target=gpu_target(target), options=launch.options)
        names = launch.kernel.arg_names
        constants = {names[at]: value for (at, *_), value in launch.constants.items()}
        compiled.append(_read(kernel, constants, target))
    return [program for at, program in enumerate(compiled) if program not in compiled[:at]]


def _read(kernel: CompiledKernel, constants: dict, target: Target) -> Program:
    # What the program takes, and how many blocks fit a multiprocessor by each resource.
    binary = _binary(kernel.asm["cubin"]) if target.backend == "cuda" else _assembly(kernel.asm["amdgcn"])
    registers, spills, instructions = binary
    meta = kernel.metadata
    columns = getattr(meta, "tmem_size", 0) or 0
    blocks = [
        512 // -(-max(1, registers) // 8 * 8) * PARTITIONS // meta.num_warps,
        target.warps // meta.num_warps,
        # CUDA reserves one KiB per block.
        target.shared // (meta.shared + KIB) if target.backend == "cuda" else target.shared // max(1, meta.shared),
        target.tensor_memory // columns if columns else target.warps,
    ]
    sides = {name.removeprefix("BLOCK").strip("_"): value for name, value in constants.items() if "BLOCK" in name}
    return Program(
        kernel=meta.name,
        tile=" ".join(
            [*(f"{name}{value}" for name, value in sides.items()), *(["TMA"] if constants.get("TMA") else [])]
        ),
        warps=meta.num_warps,
        stages=meta.num_stages,
        registers=registers,
        spills=spills,
        shared=meta.shared,
        tensor_memory=columns,
        occupancy=min(blocks) * meta.num_warps / target.warps,
        instructions=instructions,
    )


SASS = {
    "HMMA": r"HMMA|IMMA|DMMA",  # a warp's
    "HGMMA": r"[HIQ]GMMA",  # four warps', from shared memory (Hopper)
    "UTCMMA": r"UTC\w*MMA",  # one thread's, into tensor memory (Blackwell)
    "LDGSTS": r"LDGSTS",  # cp.async: global to shared memory past the registers
    "TMA": r"UTMALDG|UTMASTG|UBLKCP",
    "LDG": r"LDG",
    "STG": r"STG",
    "LOCAL": r"LDL|STL",  # spilled registers
}

GCN = {
    "MFMA": r"v_mfma\w*",
    "LDS_DMA": r"(?:buffer|global)_load_lds\w*|buffer_load\w*(?=.* lds\b)",  # past the registers
    "LDG": r"(?:buffer|global)_load\w*",
    "STG": r"(?:buffer|global)_store\w*",
    "LOCAL": r"scratch_(?:load|store)\w*",
}
"""Instruction classes of the table, and the patterns of their instructions' names."""


@lru_cache
def _binary(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    """Registers, stack bytes and instruction counts of a CUDA binary, by Triton's disassembler."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [tool, "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    registers, stack, local = map(int, usage.groups())
    return registers, stack + local, _count(SASS, re.findall(r"^\s+/\*\w{4,}\*/\s+(?:@!?U?P\w+ )?(.*?);", text, re.M))


@lru_cache
def _assembly(amdgcn: str) -> tuple[int, int, dict[str, int]]:
    """Registers, scratch bytes plus spilled registers, and instruction counts of AMD assembly.

    Scalar registers spill into lanes of vector registers and not into memory, so they do not count.
    """

    def metadata(name: str) -> int:
        return int(re.search(rf"^\s+\.{name}:\s+(\d+)", amdgcn, re.M).group(1))

    spills = sum(map(metadata, ("private_segment_fixed_size", "vgpr_spill_count")))
    return metadata("vgpr_count"), spills, _count(GCN, re.findall(r"^\s+([a-z]\w+ .*)", amdgcn, re.M))


def _count(classes: dict[str, str], instructions: list[str]) -> dict[str, int]:
    counts = Counter(
        next((name for name, pattern in classes.items() if re.match(rf"(?:{pattern})\b", line)), "")
        for line in instructions
    )
    return {name: counts[name] for name in classes if counts[name]}
