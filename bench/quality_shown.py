"""Tables and the plot of `bench.search_quality`, made from its rows only."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.cells import Results, differences
from sieve.evaluation.confidence import Interval

COLORS = {"uniform": "#7f7f7f", "budget": "#1f77b4", "ga": "#d62728", "pareto": "#2ca02c"}


def table(results: Results) -> str:
    """Both tables, as Markdown. A task's seeds are averaged; only seeds count that all compared searchers have."""
    return "\n\n".join((_tolerance(results), _sizes(results)))


def _tolerance(results: Results) -> str:
    goal = next((row["goal"] for row in results if row["goal"].startswith("epsilon")), "epsilon 0.05")
    lines = [
        f"Removed of the prunable parameters at ε = {float(goal.split()[1]):.0%}, by seed; test accuracy less the "
        "dense model's, all seeds (95 %)\n",
        "| task | search | removed | mean | × uniform | test accuracy − dense | candidates | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in _tasks(results):
        base = _by_seed(results.find(task=task, goal=goal, search="uniform"))
        for search in COLORS:
            rows = _by_seed(results.find(task=task, goal=goal, search=search))
            if not rows:
                continue
            removed = [row["removed"] for row in rows.values()]
            common = [seed for seed in rows if seed in base]
            ours, theirs = (sum(side[seed]["removed"] for seed in common) for side in (rows, base))
            dense = _by_seed(results.find(task=task, search="dense"))
            lost = _difference(rows, dense)[0]
            lines.append(
                f"| `{task}` | {search} | {' · '.join(f'{value:.1%}' for value in removed)} | "
                f"{sum(removed) / len(removed):.1%} | {f'{ours / theirs:.2f}' if theirs else '–'} | {_shown(lost)} | "
                f"{_mean(rows, 'candidates'):.0f} | {_mean(rows, 'search_seconds'):.0f} |"
            )
    return "\n".join(lines)


def _sizes(results: Results) -> str:
    lines = [
        "At one size: test accuracy, and paired differences to `uniform` on the test split (95 %), all seeds\n",
        "| task | kept | search | accuracy | accuracy − uniform | log-likelihood − uniform, nats | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    goals = sorted({row["goal"] for row in results if row["goal"].startswith("kept")}, reverse=True)
    for task in _tasks(results):
        for goal in goals:
            base = _by_seed(results.find(task=task, goal=goal, search="uniform"))
            for search in COLORS:
                rows = _by_seed(results.find(task=task, goal=goal, search=search))
                if rows:
                    accuracy, loglik = (None, None) if search == "uniform" else _difference(rows, base)
                    lines.append(
                        f"| `{task}` | {goal.split()[1]} | {search} | {_mean(rows, 'accuracy'):.3f} | "
                        f"{_shown(accuracy)} | {_shown(loglik)} | {len(rows)} |"
                    )
    return "\n".join(lines)


def _tasks(results: Results) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in results))


def _by_seed(rows: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {row["seed"]: row for row in sorted(rows, key=lambda row: row["seed"]) if "scores" in row}


def _difference(rows: dict[int, dict], base: dict[int, dict]) -> tuple[Interval | None, Interval | None]:
    common = [seed for seed in rows if seed in base]
    return differences([rows[s] for s in common], [base[s] for s in common]) if common else (None, None)


def _mean(rows: dict[int, dict], name: str) -> float:
    return sum(row[name] for row in rows.values()) / len(rows)


def _shown(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def plot(results: Results, task: str, path: Path, seed: int = 0) -> None:
    """Draw test accuracy against size for one task: a line per searcher through its results for all goals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # A line per searcher; results within the tolerance get a circle.
    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    dense = results.find(task=task, seed=seed, search="dense")
    for search, color in COLORS.items():
        rows = [row for row in results.find(task=task, seed=seed, search=search) if "accuracy" in row]
        points = [(1 - row["removed"], row["accuracy"], row["goal"].startswith("epsilon")) for row in rows]
        for row in results.find(task=task, seed=seed, search=search, goal="front"):
            points += [(1 - point["removed"], point["accuracy"], False) for point in row["front"]]
        if points:
            points.sort()
            axis.plot(*zip(*[point[:2] for point in points], strict=True), ".-", color=color, label=search)
            at = [point[:2] for point in points if point[2]]
            axis.plot(*zip(*at, strict=True), "o", color=color, fillstyle="none", markersize=11) if at else None

    # The dense model and the tolerance, for comparison.
    if dense:
        axis.axhline(dense[0]["accuracy"], color="black", linewidth=0.8, label="dense")
        axis.axhline(0.95 * dense[0]["accuracy"], color="black", linewidth=0.8, linestyle=":", label="dense − 5 %")
    axis.set_xlabel("kept fraction of the prunable parameters")
    axis.set_ylabel("accuracy on the test split")
    axis.set_title(f"{task}, seed {seed}; circles: what was found for ε = 5 %", fontsize=10)
    axis.legend(fontsize=9)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
