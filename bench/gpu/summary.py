"""The results for programs and for readers, summary.json and summary.md; both are replaced atomically."""

import json
import os
import tempfile
from pathlib import Path

from bench.gpu.runner import Outcome
from bench.gpu.wanted import EXTREMES, WANTED, derived, holds

IDENTITY = ("device", "driver", "torch", "triton", "commit")


class Summary:
    """Results in a folder. Results of an earlier run with the same device, versions and commit stay until they are
    measured again."""

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
        """Remove earlier results of these jobs, given as name → cells."""
        for name, cells in jobs.items():
            self.failed.pop(name, None)
            self.left_out.pop(name, None)
            for cell in cells:
                self.cells.pop(cell, None)

    def add(self, outcome: Outcome) -> None:
        """Add the results of a part, and write the files."""
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
        """A line of the table: a cell's value, its goal, and whether the goal is met."""
        (sign, bound), value = WANTED[name], self.cells.get(name)
        if value is None:
            return f"| {name} | – | {sign} {bound:g} | – |"
        which = f" ({self.which[name]})" if name in self.which else ""
        return f"| {name} | {value:.3g}{which} | {sign} {bound:g} | {'yes' if holds(name, value) else '**no**'} |"

    def table(self) -> str:
        """The table: first the cells with goals, then all others."""
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
    """Replace a file atomically. (`sieve.utils.files` imports packages that a GPU machine may lack.)"""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(descriptor)
    os.chmod(temporary, 0o644)
    os.replace(temporary, file)
