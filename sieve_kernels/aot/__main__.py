"""Compile every kernel for GPUs that this machine need not have, and report the compiler's results.

python -m sieve_kernels.aot prints one table of registers, spills, shared memory, occupancy and instruction classes for
every case, shape class, dtype and target, counts the memory traffic of each case in Triton's interpreter, and stores
both in aot/table.json. It fails where a program spills, does not fit its target, or lacks an instruction that
`targets.EXPECTED` asks for. Static counts show which path a kernel takes. They do not show how fast it is.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from sieve_kernels.aot.targets import TARGETS, faults
from sieve_kernels.core.cases import CASES
from sieve_kernels.core.problems import DTYPES, PROBLEMS

TABLE = Path(__file__).with_name("table.json")
"""The stored result: {"versions": …, "programs": [row, …], "traffic": [row, …]}."""

DTYPE_NAMES = tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES)
CASE_NAMES = tuple(case.name for case in CASES)

KEYS = {"programs": ("case", "shape", "dtype", "target"), "traffic": ("case", "shape", "dtype")}
"""The columns that identify a row; a run replaces rows with equal values."""


def read(path: Path = TABLE) -> dict:
    """The table stored at `path`, empty if there is none."""
    return json.loads(path.read_text()) if path.exists() else {"versions": {}, "programs": [], "traffic": []}


def write(table: dict, path: Path) -> None:
    """Store `table` at `path`, one line per row, so that diffs are readable."""
    order = {name: at for at, name in enumerate((*CASE_NAMES, *PROBLEMS, *DTYPE_NAMES, *TARGETS))}
    parts = [f'"versions": {json.dumps(table["versions"])}']
    for part, keys in KEYS.items():
        rows = [row for row in table[part] if row["case"] in CASE_NAMES]
        rows.sort(key=lambda row, keys=keys: [order[row[key]] for key in keys])
        parts.append(f'"{part}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as temporary:
        temporary.write("{\n" + ",\n".join(parts) + "\n}\n")
    os.chmod(temporary.name, 0o644)  # temporary files are readable by their owner only
    Path(temporary.name).replace(path)


def compiled(targets: list[str], dtypes: list[str], cases: list[str], shapes: list[str], jobs: int) -> list[dict]:
    """The rows of all requested programs, compiled in `jobs` processes."""
    from sieve_kernels.aot import compile

    # The longest first, so that the processes end together.
    work = [(target, dtype, tuple(cases), tuple(shapes)) for dtype in dtypes for target in targets]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return [row for rows in pool.map(compile.rows, *zip(*work, strict=True)) for row in rows]


def counted(cases: list[str]) -> list[dict]:
    """The rows of memory traffic, from a process that runs Triton's interpreter."""
    command = [sys.executable, "-m", "sieve_kernels.aot.traffic", *cases]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def show(programs: list[dict], traffic: list[dict]) -> None:
    """Print the tables that have rows; none if `rich` is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        print("the tables are stored only: pip install rich to see them here")
        return

    # Programs: one row each, those with a fault in red.
    console = Console(width=None if sys.stdout.isatty() else 190)
    table = Table("case", "shape", "dtype", "target", "kernel", "tile", title="Compiled programs (static counts)")
    for heading in ("warps", "registers", "spills", "shared", "occupancy"):
        table.add_column(heading, justify="right")
    table.add_column("instructions")
    for row in programs:
        numbers = (row["warps"], row["registers"], row["spills"], row["shared"], f"{row['occupancy']:.2f}")
        words = " ".join(f"{name} {count}" for name, count in row["instructions"].items())
        names = (row[key] for key in ("case", "shape", "dtype", "target", "kernel", "tile"))
        table.add_row(*names, *map(str, numbers), words, style="red" if faults(row) else None)
    console.print(table)
    if not traffic:
        return
    # Traffic, and its minimum.
    table = Table("case", "shape", "dtype", title="Bytes that programs load and store, and the least that must move")
    for heading in ("moved", "minimum", "ratio"):
        table.add_column(heading, justify="right")
    for row in traffic:
        ratio = f"{row['moved'] / row['minimum']:.3f}"
        table.add_row(row["case"], row["shape"], row["dtype"], f"{row['moved']:,}", f"{row['minimum']:,}", ratio)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sieve_kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPE_NAMES, default=list(DTYPE_NAMES))
    parser.add_argument("--shapes", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--cases", nargs="+", choices=CASE_NAMES, default=list(CASE_NAMES))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--no-traffic", action="store_true", help="compile only")
    parser.add_argument("--output", type=Path, default=TABLE, help="the stored table; rows that are not made stay")
    options = parser.parse_args(arguments)

    # Compile and count. Interpreted kernels cannot be compiled, so the variable must be unset.
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9's default, without its warning
    programs = compiled(options.targets, options.dtypes, options.cases, options.shapes, options.jobs)
    traffic = [] if options.no_traffic else counted(options.cases)
    show(programs, traffic)

    from torch import __version__ as torch_version
    from triton import __version__ as triton_version

    # Replace earlier rows by the new ones, and report faults.
    table = read(options.output) | {"versions": {"torch": torch_version, "triton": triton_version}}
    for part, rows in (("programs", programs), ("traffic", traffic)):
        made = {tuple(row[key] for key in KEYS[part]) for row in rows}
        table[part] = rows + [row for row in table[part] if tuple(row[key] for key in KEYS[part]) not in made]
    write(table, options.output)
    wrong = [(row, fault) for row in programs for fault in faults(row)]
    for row, fault in wrong:
        names = " ".join(row[key] for key in ("case", "shape", "dtype", "target", "kernel", "tile"))
        print(f"{names}: {fault}", file=sys.stderr)
    print(f"{len(programs)} programs, {len(wrong)} faults; stored in {options.output}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
