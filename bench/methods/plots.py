"""Pictures of the rows: curves of the grid, and the matrix of tasks."""

from pathlib import Path

import matplotlib
import numpy as np

from bench.cells import Results, differences
from bench.methods import cross, grid
from bench.methods.contenders import LOW_RANK, OURS, PROJECTIONS, SLOW, STRUCTURED

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.colors import SymLogNorm

TICKS = (0, -0.25, -0.5, -1, -2, -5, -10, -20)


def curves(measured: Results, path: Path) -> Path:
    """Accuracy and log-likelihood less those of the dense model of the same seed, by kept fraction: a column a task."""
    sizes: dict[str, set] = {}
    for row in measured:
        if row["contender"] in PROJECTIONS:
            sizes.setdefault(row["task"], set()).add(row["kept"])
    tasks = [task for task, found in sizes.items() if len(found) > 1]
    styles = _styles()
    figure, axes = pyplot.subplots(
        2, max(len(tasks), 1), figsize=(5.5 * max(len(tasks), 1), 7.5), squeeze=False, sharex=True
    )
    for column, task in enumerate(tasks):
        dense = {row["seed"]: row for row in measured.find(task=task, contender=grid.DENSE_CELL)}
        for axis, name in zip(axes[:, column], ("accuracy", "loglik"), strict=True):
            axis.axhline(0, color="black", linewidth=0.8, label="dense")
            for contender, style in styles.items():
                rows = [row for row in measured.find(task=task, contender=contender) if row["seed"] in dense]
                kept = sorted({row["kept"] for row in rows})
                lost = [
                    np.mean([row[name] - dense[row["seed"]][name] for row in rows if row["kept"] == one])
                    for one in kept
                ]
                if kept:
                    axis.plot(kept, lost, label=contender, markersize=5, **style)
            axis.grid(alpha=0.3, which="both")
        axes[1, column].set_yscale("symlog", linthresh=0.5)  # methods differ by factors; some gain
        axes[1, column].set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes[0, column].set_title(task)
        axes[1, column].set_xlabel("kept fraction of the prunable parameters")
    axes[0, 0].set_ylabel("accuracy on the test split − dense")
    axes[1, 0].set_ylabel("log-likelihood of the right answer − dense, nats")
    shown = {text: line for axis in axes[0] for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0, -1].legend(shown.values(), shown, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return _saved(figure, path)


def _styles() -> dict[str, dict]:
    """Ours solid, published projections dashed, structured removal dotted; what has few sizes is points."""
    ours = [name for name in LOW_RANK if name.startswith(OURS)]
    groups = (
        (ours, "-", "."),
        ([n for n in LOW_RANK if n not in ours], "--", "."),
        (STRUCTURED, ":", "x"),
        (SLOW, "", "s"),
    )
    return {
        name: {"color": f"C{index}", "linestyle": line, "marker": marker}
        for names, line, marker in groups
        for index, name in enumerate(names)
    }


def matrix(crossed: Results, path: Path) -> Path:
    """What pruning for one task (rows) does to another (columns): log-likelihood, and accuracy as the number."""
    sources = [name for name in cross.SOURCES if name != "dense" and crossed.find(source=name)]
    lost, texts = np.full((2, len(sources), len(cross.TARGETS)), np.nan)
    for i, source in enumerate(sources):
        for j, target in enumerate(cross.TARGETS):
            rows, dense = crossed.find(source=source, target=target), crossed.find(source="dense", target=target)
            if rows and dense:
                accuracy, loglik = differences(rows, dense)
                lost[i, j], texts[i, j] = loglik.value, accuracy.value
    figure, axis = pyplot.subplots(figsize=(9.5, 1.6 + 0.8 * len(sources)))
    limit = max(1.0, np.nanmax(np.abs(lost))) if np.isfinite(lost).any() else 1.0
    # Answers of many tokens lose tens of nats, single words one or two: both are to be seen.
    scale = SymLogNorm(linthresh=0.5, vmin=-limit, vmax=limit, base=10)
    shown = axis.imshow(lost, cmap="RdBu", norm=scale, aspect="auto")
    for i, j in np.ndindex(lost.shape):
        if np.isfinite(lost[i, j]):
            dark = abs(scale(lost[i, j]) - 0.5) > 0.3
            text = f"{lost[i, j]:+.2f} nats\nacc {texts[i, j]:+.3f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    removed = [f"{source}\n({crossed.find(source=source)[0]['removed']:.0%} removed)" for source in sources]
    axis.set_xticks(range(len(cross.TARGETS)), cross.TARGETS, rotation=20, ha="right")
    axis.set_yticks(range(len(sources)), removed)
    axis.set_ylabel("pruned for")
    axis.set_title("Test split, pruned − dense: log-likelihood of the right answer, accuracy", fontsize=10)
    ticks = [tick for tick in (-50, -10, -2, 0, 2, 10, 50) if abs(tick) <= limit]
    figure.colorbar(shown, label="nats", ticks=ticks, format="%g")
    return _saved(figure, path)


def _saved(figure, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
