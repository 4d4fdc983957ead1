"""Kernels compiled for GPUs that are not there: no spills, within limits, on the expected path."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from sieve_kernels.aot import __main__ as aot
from sieve_kernels.aot.targets import EXPECTED, TARGETS, faults
from sieve_kernels.core.cases import CASES
from sieve_kernels.core.problems import COUNTED, DTYPES, PROBLEMS

PACKAGE = Path(aot.__file__).parents[1]
GOOD = {
    "case": "lowrank_linear",
    "shape": "aligned",
    "dtype": "bfloat16",
    "target": "sm_90",
    "kernel": "matmul_kernel",
    "tile": "M128 N128 K64",
    "spills": 0,
    "shared": 98304,
    "occupancy": 0.25,
    "instructions": {"HGMMA": 4, "LDGSTS": 24},
}


def compile_table(path: Path, *options: str) -> tuple[int, list[dict]]:
    """Exit code and rows of a run in a process of its own, where Triton compiles although this one interprets."""
    command = [sys.executable, "-m", "sieve_kernels.aot", "--output", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert path.exists(), done.stderr
    return done.returncode, json.loads(path.read_text())["programs"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="all other tests compile the kernels, for the GPU at hand")
def test_representative_programs(tmp_path, monkeypatch):
    """Every forward kernel in its main shapes for the targets that differ most."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which the command must not be misled by
    options = ["--targets", "sm_90", "gfx942", "--dtypes", "bfloat16", "--shapes", "aligned", "one", "--jobs", "1"]
    cases = [case.name for case in CASES if "backward" not in case.name]
    code, rows = compile_table(tmp_path / "table.json", *options, "--no-traffic", "--cases", *cases)
    assert {row["case"] for row in rows} == set(cases)
    assert [(row, faults(row)) for row in rows if faults(row)] == []
    assert code == 0


@pytest.mark.slow
def test_all_programs(tmp_path):
    code, rows = compile_table(tmp_path / "table.json")
    assert [(row, faults(row)) for row in rows if faults(row)] == []
    assert code == 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="all other tests compile the kernels, for the GPU at hand")
def test_programs_for_a_gpu_that_no_cost_model_knows():
    """Without tensor descriptors and with 48 KiB of shared memory, what the compiler makes of each config fits."""
    code = (
        "import json, torch\n"
        "from sieve_kernels.aot.compile import programs\n"
        "from sieve_kernels.aot.targets import Target\n"
        "from sieve_kernels.core.cases import CASES\n"
        "from sieve_kernels.core.problems import PROBLEMS\n"
        "target = Target('sm_86', 'cuda', 86, 40, 48 << 10, 100 << 10, 48)\n"
        "names = ('gram_', 'gram_ weighted', 'lowrank_linear', 'lowrank_linear few rows', 'lowrank_swiglu')\n"
        "found = [\n"
        "    (case.name, shape, program.shared, program.spills)\n"
        "    for case in CASES if case.name in names\n"
        "    for shape, problem in case.problems(PROBLEMS, torch.bfloat16).items() if shape in ('aligned', 'few')\n"
        "    for program in programs(case, problem, target)\n"
        "]\n"
        "print(json.dumps(found))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len({name for name, *_ in found}) == 5
    assert [one for one in found if one[2] > 48 << 10 or one[3]] == []


def test_stored_table_is_complete_and_without_faults():
    """Whoever adds a case, a shape or a target runs `make aot`."""
    programs = aot.read()["programs"]
    wanted = {
        (case.name, shape, str(dtype).removeprefix("torch."), target)
        for case in CASES
        for dtype in case.dtypes
        for shape in case.problems(PROBLEMS, dtype)
        if shape in DTYPES[dtype]
        for target in case.targets
    }
    assert {tuple(row[key] for key in aot.KEYS["programs"]) for row in programs} == wanted
    assert [(row, faults(row)) for row in programs if faults(row)] == []


def test_every_kernel_is_compiled():
    """A kernel is a `@triton.jit` function named `…_kernel`: each is launched by a case."""
    sources = [path.read_text() for path in PACKAGE.rglob("*.py")]
    kernels = {name for text in sources for name in re.findall(r"@triton\.jit[^\n]*\ndef (\w+_kernel)\(", text)}
    assert kernels
    assert kernels == {row["kernel"] for row in aot.read()["programs"]}


def test_tensor_descriptors_where_there_are_some():
    """Aligned 16-bit operands reach shared memory by TMA on Hopper and Blackwell."""
    for target in ("sm_90", "sm_100"):
        rows = [row for row in aot.read()["programs"] if row["case"] == "lowrank_linear" and row["target"] == target]
        aligned = [row for row in rows if (row["shape"], row["dtype"]) == ("aligned", "bfloat16")]
        assert aligned
        assert all(row["instructions"]["TMA"] for row in aligned)


def test_cases_name_launchers_and_fit_all_counted_shapes():
    for case in CASES:
        module, function = case.launcher.split(":")
        assert callable(getattr(import_module(f"sieve_kernels.{module}"), function))
        assert case.problems(COUNTED, torch.bfloat16)
        assert all(case.minimum(problem) > 0 for problem in case.problems(COUNTED, torch.bfloat16).values())
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_good_row_has_no_faults():
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spills": 8}, "spills: 8 bytes, 0 instructions"),
        ({"instructions": GOOD["instructions"] | {"LOCAL": 2}}, "spills: 0 bytes, 2 instructions"),
        ({"shared": 240_000}, "needs 240000 bytes of shared memory, sm_90 has 232448"),
        ({"occupancy": 0}, "no block fits on a processor"),
        ({"instructions": {"HMMA": 64, "LDGSTS": 24}}, "without HGMMA"),
        ({"instructions": {"HGMMA": 4, "LDG": 24}}, "without LDGSTS"),
        ({"tile": "M128 N128 K64 TMA"}, "without TMA"),
        ({"tile": "M16 N64 K64"}, "without HMMA"),
        ({"kernel": "new_kernel"}, "new_kernel is not in EXPECTED"),
    ],
)
def test_faults(change, fault):
    assert faults(GOOD | change) == [fault]


def test_odd_rows_of_16_bits_need_no_asynchronous_copies():
    assert faults(GOOD | {"shape": "ragged", "instructions": {"HGMMA": 4, "LDG": 128}}) == []


def test_expectations_name_every_target():
    for dtypes in EXPECTED.values():
        for by_target in dtypes.values():
            assert set(by_target) == set(TARGETS)


def test_rows_that_were_not_made_stay(tmp_path):
    path = tmp_path / "table.json"
    table = {"versions": {}, "programs": [GOOD, GOOD | {"target": "sm_80"}, GOOD | {"case": "gone"}], "traffic": []}
    aot.write(table, path)
    assert [row["target"] for row in aot.read(path)["programs"]] == ["sm_80", "sm_90"]
    assert aot.read(tmp_path / "none.json")["programs"] == []
