"""Results of long measurements: one JSON line per finished cell, so that a stopped run can be resumed."""

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import devices
from sieve.evaluation.confidence import Interval, bootstrap, difference
from sieve.evaluation.scoring import Scores
from sieve.utils import progress

RESULTS = Path(__file__).parent / "results"


class Results:
    """Rows of a file, identified by the values of `key`. A line that a crash has cut short is ignored, and its cell is
    measured again."""

    def __init__(self, path: str | Path, key: Iterable[str]):
        self.path, self.key = Path(path), tuple(key)
        self._rows: dict[tuple, dict] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self._rows[self.name(row)] = row

    def name(self, cell: Mapping[str, Any]) -> tuple:
        return tuple(cell[field] for field in self.key)

    def __contains__(self, cell: Mapping[str, Any]) -> bool:
        return self.name(cell) in self._rows

    def __iter__(self):
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, **values: Any) -> list[dict]:
        """Rows with these values, in the order of the file."""
        return [row for row in self if all(row.get(name) == value for name, value in values.items())]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and sync it to disk."""
        self._rows[self.name(row)] = dict(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * bool(torn) + json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def work_through(
    results: Results, cells: Iterable[dict[str, Any]], measure: Callable[[dict[str, Any]], dict], about: dict[str, Any]
) -> int:
    """Measure the missing cells; each row includes `about` and the versions. Returns how many failed.

    A failed cell is reported and left to the next run; the others go on.
    """
    about, failed = about | versions(), 0
    for cell in cells:
        if cell in results:
            continue
        started = time.perf_counter()
        print(*cell.values(), flush=True)
        try:
            with progress.shown():
                row = measure(cell)
        except Exception:
            failed += 1
            traceback.print_exc()
            continue
        seconds = round(time.perf_counter() - started, 1)
        results.add(cell | row | {"seconds": seconds, "threads": torch.get_num_threads()} | about)
        print(f"  accuracy {row.get('accuracy', math.nan):.3f}, {seconds} s", flush=True)
    return failed


def versions() -> dict[str, str]:
    """Versions of the libraries and of Sieve, without which a row cannot be compared."""
    found = devices.identity(torch.device("cpu"))
    packages = {name: metadata.version(name) for name in ("transformers", "sieve-pruning")}
    return {"commit": found["commit"], "device": found["device"], "torch": found["torch"], **packages}


def packed(scores: Scores) -> dict[str, Any]:
    """Scores in compact form: right or wrong as a string of 1 and 0 (of texts all 0), nats to 3 decimals."""
    right = "".join("01"[int(value)] for value in scores.score)
    return {"right": right, "loglik": [round(float(value), 3) for value in scores.loglik]}


def unpacked(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(right or wrong [N], log-likelihoods [N]) of a row with `packed` scores."""
    scores = row["scores"]
    return np.array(list(scores["right"]), dtype=float), np.array(scores["loglik"], dtype=float)


def differences(rows: list[Mapping[str, Any]], references: list[Mapping[str, Any]]) -> tuple[Interval, Interval]:
    """Paired differences (accuracy, log-likelihood) between rows and their references, over all their examples."""
    accuracy, loglik = (np.concatenate(side) for side in _by_row(rows, references))
    return bootstrap(accuracy), bootstrap(loglik)


def signed(interval: Interval) -> str:
    """A difference and its interval, as tables show it."""
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def mean_differences(rows: list[Mapping[str, Any]], references: list[Mapping[str, Any]]) -> tuple[Interval, Interval]:
    """As `differences`, but each row has the same weight, whatever its number of examples: a stratified bootstrap."""
    generator, found = np.random.default_rng(0), []
    for side in _by_row(rows, references):
        drawn = [one[generator.integers(len(one), size=(2000, len(one)))].mean(axis=1) for one in side]
        low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
        value = float(np.mean([one.mean() for one in side]))
        found.append(Interval(value, float(low), float(high), sum(map(len, side))))
    return found[0], found[1]


def _by_row(rows: list[Mapping[str, Any]], references: list[Mapping[str, Any]]) -> tuple[list, list]:
    """(differences of being right, of log-likelihoods), an array [N] for each row."""
    pairs = [(unpacked(row), unpacked(reference)) for row, reference in zip(rows, references, strict=True)]
    accuracy, loglik = ([difference(mine[side], theirs[side]) for mine, theirs in pairs] for side in (0, 1))
    return accuracy, loglik
