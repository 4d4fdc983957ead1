"""Compare all methods on the embedded model; the results are stored in bench/results.

python -m bench.methods run      # the grid; appends to bench/results/methods.jsonl; run again, it goes on
python -m bench.methods cross    # pruned for one task, tested on all: bench/results/cross.jsonl
python -m bench.methods table    # Markdown
python -m bench.methods plot     # PNGs beside the data
python -m bench.methods docs     # all tables into docs/results.md
"""

import argparse
import sys
from pathlib import Path

from bench.cells import RESULTS, Results, work_through
from bench.methods import cross, grid, shown
from bench.methods.setting import TOKENS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "cross", "table", "plot", "docs"))
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of results")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", nargs="+", help="of the grid, or to prune for")
    parser.add_argument("--contenders", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the grid")
    parser.add_argument("--cache", type=Path, default=Path("runs/methods"), help="folder of calibrations")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a calibration pass")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)

    # The stored rows, as tables or plots.
    measured = Results(chosen.folder / "methods.jsonl", grid.KEY)
    crossed = Results(chosen.folder / "cross.jsonl", cross.KEY)
    if chosen.what == "table":
        print(shown.table(measured, crossed))
    elif chosen.what == "plot":
        for path in shown.plots(measured, crossed, chosen.folder):
            print(f"plot in {path}")
    elif chosen.what == "docs":
        print(f"tables in {shown.write_docs(chosen.folder)}")
    else:
        # Or measure the cells that have no row yet.
        results, cells, kind = (
            (measured, grid.cells(chosen.tasks, chosen.contenders, chosen.seeds), grid.Grid)
            if chosen.what == "run"
            else (crossed, cross.cells(chosen.tasks), cross.Cross)
        )
        bench = kind(chosen.model, chosen.cache, chosen.tokens)
        failed = work_through(results, cells, bench.measure, {"model": chosen.model, "tokens": chosen.tokens})
        if failed:
            sys.exit(f"{failed} cells failed")


if __name__ == "__main__":
    main()
