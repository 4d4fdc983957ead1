"""Compare the operators with library products on the shapes of well-known models, on this machine's device.

python -m bench prints a line per contender and writes bench.csv; `--plot speed.png` draws speed against kept fraction.
The contenders of a cell take turns, and their medians are compared. On a GPU each is measured eagerly and as a CUDA
graph. Without options a GPU measures every cell; a CPU measures a selection that takes three minutes.
"""

import argparse
import csv
import itertools
import sys
from pathlib import Path

import torch

from bench import devices
from bench.operators import MATRICES, OPERATORS, WITHOUT_RANK, Contender
from bench.plot import plot
from bench.shapes import KEPT, MODELS, ROWS, Cell
from sieve_kernels.autotune.measure import medians

COLUMNS = (
    *("operator", "model", "matrix", "n", "m", "rank", "rows", "kept", "dtype", "contender", "mode"),
    *("ms", "speed_over_dense", "tflops", "gbs", "roofline_share", "roofline_source", "error"),
    *("device", "driver", "torch", "triton", "commit"),
)


def cells(options: argparse.Namespace) -> list[tuple[str, Cell]]:
    """The requested operators and cells. Operators that do not depend on the kept fraction get a single one."""
    found = []
    for operator, model in itertools.product(options.operators, options.models):
        matrices = [name for name in MODELS[model].matrices() if name in MATRICES.get(operator, options.matrices)]
        kept = options.kept[:1] if operator in WITHOUT_RANK else options.kept
        for matrix, rows, share, dtype in itertools.product(matrices, options.rows, kept, options.dtypes):
            if matrix in options.matrices:
                found.append((operator, Cell(model, matrix, rows, share, getattr(torch, dtype))))
    return found


@torch.inference_mode()
def measure(operator: str, cell: Cell, device: torch.device, rounds: int, compiled: bool) -> list[dict]:
    """The rows of a cell: every contender in every mode."""
    torch.compiler.reset()  # shapes of earlier cells count towards its limit of recompilations
    contenders = [c for c in OPERATORS[operator](cell, device) if compiled or c.name != "compiled"]
    works = {(c.name, "eager"): c.run for c in contenders}
    for contender in contenders:
        contender.run()  # compiles the contender where needed
        if device.type == "cuda":
            works[contender.name, "graph"] = devices.graphed(contender.run)
    errors = {c.name: c.error() for c in contenders}
    taken = medians(works, device, rounds)
    by_name = {c.name: c for c in contenders}
    return [
        _row(operator, cell, by_name[name], mode, seconds, taken["dense", mode], device) | {"error": errors[name]}
        for (name, mode), seconds in taken.items()
    ]


def _row(
    operator: str, cell: Cell, contender: Contender, mode: str, seconds: float, dense: float, device: torch.device
) -> dict:
    limit = devices.roofline(device, cell.dtype)
    return {
        "operator": operator,
        "model": cell.model,
        "matrix": cell.matrix,
        "n": cell.n,
        "m": cell.m,
        "rank": "" if operator in WITHOUT_RANK else cell.rank,
        "rows": cell.rows,
        "kept": "" if operator in WITHOUT_RANK else cell.kept,
        "dtype": str(cell.dtype).removeprefix("torch."),
        "contender": contender.name,
        "mode": mode,
        "ms": 1e3 * seconds,
        "speed_over_dense": dense / seconds,
        "tflops": contender.flops / seconds / 1e12,
        "gbs": contender.bytes / seconds / 1e9,
        "roofline_share": limit.share(contender.flops, contender.bytes, seconds) if limit else "",
        "roofline_source": limit.source if limit else "",
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])

    def choose(name: str, values: tuple, few: tuple, kind: type = str) -> None:
        choices = None if kind is not str else values
        parser.add_argument(f"--{name}", nargs="+", type=kind, choices=choices, default=list(values if gpu else few))

    choose("operators", tuple(OPERATORS), ("lowrank_linear", "lowrank_swiglu", "gram_"))
    choose("models", tuple(MODELS), ("smollm2-135m", "llama-3-8b"))
    choose("matrices", ("q", "k", "o", "gate", "down"), ("q", "gate"))
    choose("rows", ROWS, (1, 8, 128), int)
    choose("kept", KEPT, (0.25, 0.5), float)
    choose("dtypes", ("bfloat16", "float16", "float32"), ("bfloat16",))
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--rounds", type=int, default=30 if gpu else 5)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: most of the time on a CPU")
    parser.add_argument("--output", type=Path, default=Path("bench.csv"))
    parser.add_argument("--plot", type=Path, help="a PNG of speed against kept fraction")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    device = torch.device(options.device)
    identity, rows = devices.identity(device), []
    if options.output.exists() and not _is_table(options.output):
        print(f"{options.output} is no table of this benchmark: name another file with --output", file=sys.stderr)
        return 2
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for operator, cell in cells(options):
            for row in measure(operator, cell, device, options.rounds, not options.no_compile):
                rows.append(row | identity)
                writer.writerow(rows[-1])
                _say(row)
            file.flush()  # finished cells stay if a later one fails
    print(f"{len(rows)} rows in {options.output}")
    if options.plot:
        plot(rows, options.plot)
        print(f"plot in {options.plot}")
    return 0


def _is_table(file: Path) -> bool:
    """Whether this benchmark wrote the file, or the file is empty."""
    with file.open(errors="replace", newline="") as lines:
        return next(csv.reader(lines), COLUMNS) == list(COLUMNS)


def _say(row: dict) -> None:
    layer = f"{row['operator']} {row['model']} {row['matrix']} {row['n']}→{row['m']}"
    kept = f"kept {row['kept']}, " if row["kept"] != "" else ""
    share = f", {100 * row['roofline_share']:.0f} % of the roofline" if row["roofline_share"] != "" else ""
    print(
        f"{layer}, {kept}{row['rows']} rows, {row['dtype']}: {row['contender']} ({row['mode']}) {row['ms']:.3f} ms, "
        f"{row['speed_over_dense']:.2f} × dense, {row['tflops']:.2f} TFLOP/s, {row['gbs']:.1f} GB/s{share}, "
        f"error {row['error']:.1e}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
