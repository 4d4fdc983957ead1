"""Tables, plots and the page docs/results.md, made from the committed rows only."""

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench import generalisation, quality_shown, recipes, search_quality
from bench.cells import RESULTS, Results, differences, mean_differences, signed
from bench.methods import cross, grid, shrinkage
from bench.methods.contenders import ABLATION, BASES, MASKED, PROJECTIONS
from sieve.evaluation.confidence import Interval

# Remove this once these tasks have been measured again.
SPLITS_OF_OLD = (
    "The rows of `capitals`, `boolq` and `commonsense_qa` were measured, by the commits above, with the splits of that "
    "time: rows that share a fact (both directions of a capital, the questions about one passage) could be in two "
    "splits, and 24 questions of `commonsense_qa` had two equal choices. Since `group` keeps the first together and "
    "the second are left out, these tasks have other splits. So have `imdb`, `boolq` and `pubmed_qa`, whose splits now "
    "have each label in proportion: compare no new measurement with these rows. The splits of `geography` and `piqa` "
    "are the same.\n"
)
DOCS = Path(__file__).parents[2] / "docs" / "results.md"
MAIN = ("geography", "imdb")
REACHED = "svd_llm"
REACHED_AT = (0.5, 0.6, 0.7, 0.8)
SOURCES = {
    "recipes": "recipes run",
    "generalisation": "generalisation run",
    "search_quality": "search_quality run",
    "methods": "methods run",
    "cross": "methods cross",
    "shrinkage": "methods.shrinkage",
}
"""File of rows → the command that makes it."""
SETS = ("general", "task", "concatenated", "fused")
Rows = Iterable[dict[str, Any]]


def table(measured: Results, crossed: Results) -> str:
    """All tables as Markdown; tables without rows are left out."""
    parts = [
        *(_grid(measured, task) for task in MAIN), _half(measured), _reach(measured), _cost(measured), _masks(measured),
        _ablation(measured), _matrix(crossed),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def _grid(measured: Results, task: str) -> str:
    """The table of score and likelihood of every projection at every size."""
    sizes = sorted({row["kept"] for row in measured.find(task=task) if row["kept"] < 1}, reverse=True)
    rows = {name: measured.find(task=task, contender=name) for name in PROJECTIONS}
    rows = {name: found for name, found in rows.items() if found}
    dense = measured.find(task=task, contender=grid.DENSE_CELL)
    if not rows:
        return ""
    head = ["method", *(f"{kept:g}" for kept in sizes)]
    scores, logliks = [], []
    for name, found in rows.items():
        at = [[row for row in found if row["kept"] == kept] for kept in sizes]
        lost = [[text + _note(some, dense) for text in _difference(some, dense)] if some else "––" for some in at]
        scores.append([f"`{name}`", *(accuracy for accuracy, _ in lost)])
        logliks.append([f"`{name}`", *(loglik for _, loglik in lost)])
    title = f"### `{task}`: uniform ranks, no pivoting\n\n"
    note = (
        f"Test accuracy less the dense model's ({_mean(dense, 'accuracy'):.3f}), by kept fraction; paired, "
        f"95 %, {len(dense)} seeds, or as many as are named in brackets:\n\n"
    )
    other = "\n\nLog-likelihood of the right answer less the dense model's, nats, the same way:\n\n"
    return title + note + _markdown(head, scores) + other + _markdown(head, logliks)


def _half(measured: Results) -> str:
    """The table of all other tasks at one size."""
    lines = []
    for name in PROJECTIONS:
        for task in dict.fromkeys(row["task"] for row in measured if row["task"] not in MAIN):
            found = measured.find(contender=name, task=task, kept=0.5)
            dense = measured.find(contender=grid.DENSE_CELL, task=task)
            if found and dense:
                accuracy, loglik = _difference(found, dense)
                lines.append([f"`{task}`", f"`{name}`", f"{_mean(found, 'accuracy'):.3f}", accuracy, loglik])
    head = ["task", "method", "accuracy", "accuracy − dense", "log-likelihood − dense, nats"]
    return "### Half the parameters on the other tasks\n\n" + _markdown(head, sorted(lines)) if lines else ""


def _reach(measured: Results) -> str:
    """The table of how many fewer parameters a method needs for the likelihood of the best published method."""
    lines = []
    for task in MAIN:
        reached = _seeds(measured, REACHED, task)
        for name in PROJECTIONS:
            seeds = reached & _seeds(measured, name, task)
            curve, target = (_curve(measured, one, task, seeds) for one in (name, REACHED))
            if name == REACHED or len(curve) < 3 or len(target) < 3:
                continue
            level = dict(target)
            cells = [_fewer(curve, kept, level[kept]) if kept in level else "–" for kept in REACHED_AT]
            lines.append([f"`{task}`", f"`{name}`", *cells, f"{len(seeds)}"])
    if not lines:
        return ""
    head = ["task", "method", *(f"at {kept:g}" for kept in REACHED_AT), "seeds"]
    return (
        f"### Parameters of `{REACHED}` over those of a method with the same log-likelihood\n\n"
        "Between measured sizes by straight lines, over the seeds that both were measured on; > where even the "
        "smallest measured is better, – where none is as good.\n\n" + _markdown(head, lines)
    )


def _seeds(measured: Results, name: str, task: str) -> set[int]:
    """The seeds for which all measured sizes of a method are available."""
    rows = measured.find(contender=name, task=task)
    sizes = {row["kept"] for row in rows}
    return {row["seed"] for row in rows if {one["kept"] for one in rows if one["seed"] == row["seed"]} == sizes}


def _curve(measured: Results, name: str, task: str, seeds: set[int]) -> list[tuple[float, float]]:
    """(kept fraction, mean log-likelihood minus the dense model's) over these seeds; fractions ascend."""
    dense = {row["seed"]: row["loglik"] for row in measured.find(contender=grid.DENSE_CELL, task=task)}
    lost: dict[float, list[float]] = {}
    for row in measured.find(contender=name, task=task):
        if row["seed"] in seeds:
            lost.setdefault(row["kept"], []).append(row["loglik"] - dense[row["seed"]])
    return [(kept, float(np.mean(lost[kept]))) for kept in sorted(lost)]


def _kept_at(curve: Sequence[tuple[float, float]], value: float) -> float | None:
    """The smallest kept fraction with this log-likelihood, by linear interpolation; None outside the measured range."""
    for (low, first), (high, second) in pairwise(curve):
        if min(first, second) <= value <= max(first, second) and first != second:
            return low + (high - low) * (value - first) / (second - first)
    return None


def _fewer(curve: Sequence[tuple[float, float]], kept: float, value: float) -> str:
    """How many times fewer parameters than `kept` a method needs for this log-likelihood."""
    found = _kept_at(curve, value)
    if found is not None:
        return f"{kept / found:.2f}"
    return f"> {kept / curve[0][0]:.2f}" if value < min(loglik for _, loglik in curve) else "–"


def _cost(measured: Results) -> str:
    """The table of errors and building costs, at half the parameters on `geography`, seed 0."""
    lines = []
    dense = measured.find(contender=grid.DENSE_CELL, task=MAIN[0], seed=0)
    for name in (*PROJECTIONS, *MASKED):
        for row in measured.find(contender=name, task=MAIN[0], seed=0, kept=0.5):
            passes = [one["cpu_seconds"] for one in row["calibration"]]
            peak = max([row["build"]["peak_bytes"], *(one["peak_bytes"] for one in row["calibration"])])
            error = "–" if row["output_error"] is None else f"{row['output_error']:.4f}"
            took = f"{sum(passes):.0f}", f"{row['build']['cpu_seconds']:.0f}", f"{peak / 2**20:.0f}"
            lines.append([f"`{name}`", error, _worst(measured, name), _perplexity(row), *took])
    head = ["method", "output error", "ours / it", "perplexity", "calibration, s", "building, s", "peak, MiB"]
    note = (
        f"### What it costs: `{MAIN[0]}`, seed 0, kept .5\n\nOutput error: Σ|Wx − Mx|² / Σ|Wx|² over the calibration "
        "tokens, mean over matrices; beside it the most that `output_aligned`'s is of it, over all cells measured. "
        f"Perplexity: of general text, dense {_perplexity(dense[0])}. Seconds of processor time, one thread, of a "
        "machine with other work: upper bounds. Peak: memory held beyond what was held before, of calibration or "
        "building, whichever is more.\n\n"
    ) if dense else ""  # fmt: skip
    return note + _markdown(head, lines) if lines else ""


def _worst(measured: Results, name: str) -> str:
    """The largest ratio of output_aligned's error to this method's, over cells with equal ranks."""
    ours = {_where(row): row["output_error"] for row in measured.find(contender="output_aligned")}
    theirs = {_where(row): row["output_error"] for row in measured.find(contender=name)} if name in PROJECTIONS else {}
    ratios = [ours[cell] / error for cell, error in theirs.items() if error and cell in ours]
    return f"{max(ratios):.3f}" if ratios and name != "output_aligned" else "–"


def _where(row: dict[str, Any]) -> tuple:
    return row["task"], row["seed"], row["kept"]


def _masks(measured: Results) -> str:
    """The table of masks by the data of their scores, at half the weights, over tasks that have all four."""
    lines = []
    for base in BASES:
        # Only tasks that were measured with all data, so that means are comparable.
        found = {
            data: {row["task"]: row for row in measured.find(contender=f"{base} {data}", kept=0.5)} for data in SETS
        }
        common = sorted(set.intersection(*(set(rows) for rows in found.values())))

        # A line per kind of data, with differences to general data.
        for data in SETS if common else ():
            rows = [found[data][task] for task in common]
            accuracy, loglik = _written(mean_differences(rows, [found["general"][task] for task in common]))
            ratio = np.mean([row["perplexity"] / found["general"][row["task"]]["perplexity"] for row in rows])
            lines.append([
                base, data, f"{_mean(rows, 'accuracy'):.3f}", "–" if data == "general" else accuracy,
                "–" if data == "general" else loglik, f"{ratio:.3f}", f"{len(common)}",
            ])  # fmt: skip

    # The heading says what the means are over.
    head = [
        "scores",
        "data",
        "accuracy",
        "− general's",
        "log-likelihood − general's, nats",
        "perplexity / general's",
        "tasks",
    ]
    note = (
        "### Task-aware masks: half the weights, seed 0\n\nMeans over tasks, each counting the same, as do the paired "
        "differences: of answers to a question, over the questions of a task, then over tasks.\n\n"
    )
    return note + _markdown(head, lines) if lines else ""


def _ablation(measured: Results) -> str:
    """The table of every option against its default, over the tasks that have both."""
    default = {row["task"]: row for row in measured.find(contender="wanda fused", kept=0.5)}
    ablated = {row["task"] for row in measured if row["contender"] in ABLATION}
    lines = []
    for name in ("wanda concatenated", *ABLATION):
        found = {row["task"]: row for row in measured.find(contender=name, kept=0.5)}
        tasks = sorted(found.keys() & default.keys() & ablated)
        if tasks:
            rows, base = [found[task] for task in tasks], [default[task] for task in tasks]
            ratio = np.mean([one["perplexity"] / other["perplexity"] for one, other in zip(rows, base, strict=True)])
            lines.append([name.removeprefix("wanda "), *_written(mean_differences(rows, base)), f"{ratio:.3f}"])
    if not lines:
        return ""
    head = ["Wanda, kept .5", "accuracy", "log-likelihood, nats", "perplexity / default's"]
    note = (
        "### Knobs of the fusion\n\nLess the default (fused, τ = .2, mean, task = .5): paired, means over "
        f"{', '.join(f'`{task}`' for task in sorted(ablated))}, seed 0.\n\n"
    )
    return note + _markdown(head, lines)


def _matrix(crossed: Results) -> str:
    sources = [name for name in cross.SOURCES if name != "dense" and crossed.find(source=name)]
    if not sources:
        return ""
    lines = []
    for source in sources:
        removed = crossed.find(source=source)[0]["removed"]
        cells = []
        for target in cross.TARGETS:
            rows, dense = crossed.find(source=source, target=target), crossed.find(source="dense", target=target)
            loglik = target in cross.BY_LIKELIHOOD
            cells.append(_paired(rows, dense)[loglik] + (" nats" if loglik else "") if rows and dense else "–")
        lines.append([f"`{source}` ({removed:.0%} removed)", *cells])
    base = [crossed.find(source="dense", target=target) for target in cross.TARGETS]
    lines.insert(0, ["dense accuracy", *(f"{rows[0]['accuracy']:.3f}" if rows else "–" for rows in base)])
    note = (
        "### Pruned for one task, tested on all\n\nUniform search at ε = 5 % (`boolq`: of the probability of the right "
        "answer among the choices). Test accuracy less the dense model's, paired, 95 %; of "
        f"{' and '.join(cross.BY_LIKELIHOOD)} the log-likelihood of the right answer.\n\n"
    )
    return note + _markdown(["pruned for", *(f"`{target}`" for target in cross.TARGETS)], lines)


def _difference(rows: Rows, dense: Rows) -> tuple[str, str]:
    """The difference to the dense model of the same seed."""
    by_seed = {row["seed"]: row for row in dense}
    rows = [row for row in rows if row["seed"] in by_seed]
    return _paired(rows, [by_seed[row["seed"]] for row in rows])


def _paired(rows: list[dict], references: list[dict]) -> tuple[str, str]:
    return _written(differences(rows, references))


def _written(intervals: tuple[Interval, Interval]) -> tuple[str, str]:
    return tuple(map(signed, intervals))


def _mean(rows: Rows, name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _perplexity(row: dict[str, Any]) -> str:
    return f"{row['perplexity']:,.1f}" if row["perplexity"] < 1000 else f"{row['perplexity']:,.0f}"


def _note(rows: list, dense: list) -> str:
    return "" if len(rows) == len(dense) else f" ({len(rows)})"


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _shrinkage(shrunk: Results) -> str:
    """The table of the gain by shrinkage, by the number of calibration tokens."""
    lines = [
        [
            f"`{row['task']}`", f"{row['tokens']:,}", row["prior"], f"{'auto: ' * row['auto']}{row['share']:g}",
            f"{row['error_calibration']:.4f}", f"{row['error_new']:.4f}", f"{row['loglik']:.3f}",
            f"{row['gain']:+.3f} ± {row['gain_standard_error']:.3f}",
        ]
        for row in shrunk
    ]  # fmt: skip
    if not lines:
        return ""
    head = ["task", "tokens", "prior", "share", "error, calibration", "new texts", "log-likelihood", "gain, nats"]
    return (
        "### Shrinkage of Gram matrices, half the parameters\n\nOutput errors of every third block on the calibration "
        "texts and on new ones; gain in the test split's log-likelihood over no shrinkage, with its standard error.\n\n"
        + _markdown(head, lines)
        + "\n"
    )


def write_docs(folder: Path) -> Path:
    """Write docs/results.md: all tables, and the commands that made their data."""
    measured, crossed = Results(folder / "methods.jsonl", grid.KEY), Results(folder / "cross.jsonl", cross.KEY)
    searched = Results(folder / "search_quality.jsonl", search_quality.KEY)
    shrunk = Results(folder / "shrinkage.jsonl", shrinkage.KEY)
    whole = Results(folder / "recipes.jsonl", recipes.KEY)
    general = Results(folder / "generalisation.jsonl", generalisation.KEY)
    about: dict[str, set[str]] = {}
    for row in chain(measured, crossed, searched, shrunk, whole, general):
        about.setdefault(f"{row['device']}, torch {row['torch']}", set()).add(row["commit"])
    parts = [
        "# Results\n\nSmolLM2-135M-Instruct in bfloat16. Every number below is computed from the data files in "
        "`bench/results/` by `python -m bench.methods docs`; nothing on this page is written by hand. Intervals are 95 "
        "% bootstrap intervals of paired differences, over the examples of all seeds that are named; seeds share some "
        "examples, so that over several seeds they are somewhat too narrow.\n",
        _markdown(["data", "made by"], [[f"`{name}.jsonl`", f"`python -m bench.{by}`"] for name, by in SOURCES.items()])
        + "\n",
        *(f"On {machine}, by the commits {', '.join(sorted(commits))}.\n" for machine, commits in about.items()),
        SPLITS_OF_OLD,
        "## What options buy\n\n" + recipes.table(whole) + "\n" if len(whole) else "",
        "## What is kept of other tasks\n\n" + generalisation.table(general) + "\n" if len(general) else "",
        "## Searches\n\n" + quality_shown.table(searched) + "\n" if len(searched) else "",
        *_pictures(folder, "search_quality"),
        "## Methods\n\n" + table(measured, crossed) + "\n",
        _shrinkage(shrunk),
        *_pictures(folder, "methods", "cross"),
    ]
    DOCS.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return DOCS


def _pictures(folder: Path, *names: str) -> list[str]:
    """Links to the plots that exist."""
    return [f"![{name}](../bench/results/{name}.png)\n" for name in names if (folder / f"{name}.png").exists()]


def plots(measured: Results, crossed: Results, folder: Path = RESULTS) -> list[Path]:
    """Draw the curves of the grid and the matrix of tasks."""
    from bench.methods.plots import curves, matrix

    return [
        *([curves(measured, folder / "methods.png")] if len(measured) else []),
        *([matrix(crossed, folder / "cross.png")] if any(row["source"] != "dense" for row in crossed) else []),
    ]
