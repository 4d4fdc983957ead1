"""The effect of the options of `sieve prune`: the size of the model within the tolerance, and the cost.

python -m bench.recipes run      # appends to bench/results/recipes.jsonl; a second run resumes
python -m bench.recipes table    # Markdown

A cell is one run of the command, calibration included, on one task with one seed of its splits.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from bench.cells import RESULTS, Results, work_through
from sieve.errors import ToleranceError
from sieve.run.pipeline import prune
from sieve.run.presets import PRESETS
from sieve.run.recipe import Recipe

KEY = ("options", "task", "seed")
TASKS = ("countries", "us_cities", "geography", "capitals", "imdb", "piqa")
OPTIONS = {
    "output_aligned": {},
    "output_aligned, shared": {"shared_input": True},
    "loss_aware": {"method": "loss_aware"},
    "loss_aware, shared": {"method": "loss_aware", "shared_input": True},
    "loss_aware, shared, refit": {"method": "loss_aware", "shared_input": True, "refit": True},
    "widths": {"method": "widths"},
    "widths, shared": {"method": "widths", "shared_input": True},
    "widths, shared, generated": {"method": "widths", "shared_input": True, "generated_tokens": 20_000},
    "widths, shared, refit": {"method": "widths", "shared_input": True, "refit": True},
    "widths, shared, healed": {"method": "widths", "shared_input": True, "heal": "label-free"},
    "default, two rounds": PRESETS["default"] | {"rounds": 2, "bottlenecks": 16},
    **PRESETS,
}


def cells(tasks: list[str], seeds: list[int], options: list[str]) -> Iterator[dict[str, Any]]:
    """All seeds of a task, then the next task."""
    for task in tasks:
        for seed in seeds:
            for name in options:
                yield {"options": name, "task": task, "seed": seed}


def measured(cell: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The row of a cell, from its folder's report. If no plan is within the tolerance, the row says that nothing was
    removed.

    Args:
        values: of the recipe, in addition to the cell's.
    """
    recipe = Recipe(task=cell["task"], seed=cell["seed"], **OPTIONS[cell["options"]], **values)
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = prune(recipe, Path(folder) / "pruned")
        except ToleranceError as error:
            return {"failure": str(error), "removed": 0.0, "model_removed": 0.0, "lost": 0.0}
    return {
        "removed": report["parameters"]["prunable_removed"],
        "model_removed": report["parameters"]["model_removed"],
        "accuracy": report["accuracy"]["pruned"]["test"]["value"],
        "lost": -report["difference"]["accuracy"]["test"]["value"],
        "difference": report["difference"],
        "rounds": report.get("rounds"),
        "stages": report["seconds"],
    }


def table(results: Results) -> str:
    """The table as Markdown: a line per task and options, with its seeds side by side."""
    tolerances = " and ".join(sorted({f"{row['tolerance']:.0%}" for row in results}))
    lines = [
        f"`sieve prune` within ε = {tolerances} on the validation split, from calibration to test\n",
        "| task | `sieve prune` with | removed of the prunable, by seed | mean | of the model | "
        "lost of the test accuracy, by seed | mean | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(row["task"] for row in results):
        for options in OPTIONS:
            rows = sorted(results.find(task=task, options=options), key=lambda row: row["seed"])
            if not rows:
                continue
            removed, model_removed, lost, seconds = (
                [row[name] for row in rows] for name in ("removed", "model_removed", "lost", "seconds")
            )
            lines.append(
                f"| `{task}` | {options} | {' · '.join(f'{one:.1%}' for one in removed)} | {mean(removed):.1%} | "
                f"{mean(model_removed):.1%} | {' · '.join(f'{one:.3f}' for one in lost)} | {mean(lost):.3f} | "
                f"{mean(seconds):.0f} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recipes", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--results", type=Path, default=RESULTS / "recipes.jsonl")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--tolerance", type=float, default=0.05)
    chosen = parser.parse_args(arguments)
    results = Results(chosen.results, KEY)
    if chosen.what == "table":
        print(table(results))
        return
    setting = {"model": chosen.model, "tolerance": chosen.tolerance}
    wanted = cells(chosen.tasks, chosen.seeds, chosen.options)
    failed = work_through(results, wanted, lambda cell: measured(cell, **setting), setting)
    if failed:
        sys.exit(f"{failed} cells failed")


if __name__ == "__main__":
    main()
