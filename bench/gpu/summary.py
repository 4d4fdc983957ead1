"""What was measured, for readers and for programs: summary.json and summary.md, whole at every moment."""

import json
import os
import tempfile
from pathlib import Path

from bench.gpu.runner import Outcome
from bench.gpu.wanted import EXTREMES, WANTED, derived, holds

IDENTITY = ("device", "driver", "torch", "triton", "commit")


class Summary:
    """Results in a folder. Those of an earlier run on the same device, versions and commit stay until measured anew."""

    def __init__(self, folder: Path, identity: dict[str, str]):
        self.folder, self.identity = folder, {name: identity[name] for name in IDENTITY}
        self.cells: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.which: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        earlier = _earlier(folder / "summary.json")
        known = self.identity["commit"] != "unknown" and not self.identity["commit"].endswith("-dirty")
        if known and {name: earlier.get(name) for name in IDENTITY} == self.identity:
            self.cells, self.failed = earlier["cells"], earlier.get("failed", {})
            self.left_out = earlier.get("left_out", {})

    def begin(self, jobs: dict[str, tuple[str, ...]]) -> None:
        """Forget what is known of jobs, by name with their cells."""
        for name, cells in jobs.items():
            self.failed.pop(name, None)
            self.left_out.pop(name, None)
            for cell in cells:
                self.cells.pop(cell, None)

    def add(self, outcome: Outcome) -> None:
        """Take in what a part gave, and write."""
        self.cells |= outcome.cells
        self.failed |= outcome.failed
        self.left_out |= outcome.left_out
        self.write()

    def write(self) -> None:
        plain = {name: value for name, value in self.cells.items() if name not in EXTREMES}
        found, self.which = derived(plain)
        self.cells = plain | found
        content = {
            **self.identity,
            "cells": {name: float(f"{value:.5g}") for name, value in self.cells.items()},
            "wanted": {name: f"{sign} {bound:g}" for name, (sign, bound) in WANTED.items()},
            "missed": [name for name in WANTED if name in self.cells and not holds(name, self.cells[name])],
            "which": self.which,
            "failed": self.failed,
            "left_out": self.left_out,
        }
        replace(self.folder / "summary.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        replace(self.folder / "summary.md", self.table())

    def row(self, name: str) -> str:
        """A line of the table: what was measured of a cell, what is wanted, and whether it holds."""
        (sign, bound), value = WANTED[name], self.cells.get(name)
        if value is None:
            return f"| {name} | – | {sign} {bound:g} | – |"
        which = f" ({self.which[name]})" if name in self.which else ""
        return f"| {name} | {value:.3g}{which} | {sign} {bound:g} | {'yes' if holds(name, value) else '**no**'} |"

    def table(self) -> str:
        """What is wanted beside what was measured, then everything else."""
        identity = ", ".join(f"{name} {value}" for name, value in self.identity.items() if value)
        lines = [
            f"# {self.identity['device']}",
            "",
            identity,
            "",
            "| cell | measured | wanted | holds |",
            "|---|---|---|---|",
        ]
        lines += map(self.row, WANTED)
        lines += ["", "Bounds, ratios and definitions: `bench/gpu/`. us: microseconds, ms: milliseconds.", ""]
        lines += ["| cell | measured |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in self.cells.items() if name not in WANTED]
        for title, jobs in (("Failed", self.failed), ("Left out", self.left_out)):
            if jobs:
                lines += ["", f"## {title}", *(f"- {name}: {why}" for name, why in jobs.items())]
        return "\n".join(lines) + "\n"


def _earlier(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("cells"), dict) else {}


def replace(file: Path, text: str) -> None:
    """Write a file at once. (`sieve.utils.files` asks for packages that a GPU's machine need not have.)"""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(descriptor)
    os.chmod(temporary, 0o644)
    os.replace(temporary, file)
