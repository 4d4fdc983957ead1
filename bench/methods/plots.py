"""Plots of the rows: curves of the grid, and the matrix of tasks."""

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
    """The methods' losses against the dense model of the same seed, by kept fraction.

    Each row is a task and a measure, each column a family of methods. The family's lines are labelled at their right
    ends; the lines of other families are grey. Bands span the seeds.
    """
    # A row of panels for each task that was measured at several sizes.
    sizes: dict[str, set] = {}
    for row in measured:
        if row["contender"] in PROJECTIONS:
            sizes.setdefault(row["task"], set()).add(row["kept"])
    rows = [(task, name) for task, found in sizes.items() if len(found) > 1 for name in LOST]
    shape = max(len(rows), 1), len(FAMILIES)
    figure, axes = pyplot.subplots(
        *shape, figsize=(3.6 * shape[1], 2.7 * shape[0]), squeeze=False, sharex=True, sharey="row"
    )
    for (task, name), panels in zip(rows, axes, strict=False):
        lost = {contender: _lost(measured, task, contender, name) for contender in PROJECTIONS}
        lost = {contender: found for contender, found in lost.items() if found}

        # A panel per family, with the other families' lines in grey.
        for axis, (family, members) in zip(panels, FAMILIES.items(), strict=True):
            axis.axhline(0, color="black", linewidth=0.8)
            for contender, found in lost.items():
                if contender not in members:
                    axis.plot(list(found), [np.mean(one) for one in found.values()], color="0.85", linewidth=0.8)
            if name == "loglik":
                axis.set_yscale("symlog", linthresh=0.5)  # methods differ by factors; some gain
                axis.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
            axis.grid(alpha=0.3, which="major")
            axis.set_xlim(0.37, 1.42)
            axis.set_xticks([0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_title(family if axis in axes[0] else "", fontsize=10, loc="left")
        panels[0].set_ylabel(f"{task}\n{LOST[name]}", fontsize=9)

        # Labels last: they are spread by their positions on the page, which drawing fixes.
        figure.canvas.draw()
        for axis, members in zip(panels, FAMILIES.values(), strict=True):
            _named(axis, {contender: lost[contender] for contender in members if contender in lost})
    for axis in axes[-1]:
        axis.set_xlabel("kept fraction", fontsize=9)
    return _saved(figure, path)


LOST = {"accuracy": "test accuracy − dense", "loglik": "log-likelihood − dense, nats"}
_OWN = [name for name in LOW_RANK if name.startswith(OURS)]
FAMILIES = {
    "ours, from one calibration": [name for name in _OWN if "refit" not in name],
    "ours, refitted": [name for name in _OWN if "refit" in name],
    "published projections": [name for name in LOW_RANK if name not in _OWN],
    "structure removed; trained pairs": [*STRUCTURED, *SLOW],
}
"""Title of a column → its contenders, few enough to be distinguished."""


def _lost(measured: Results, task: str, contender: str, name: str) -> dict[float, list[float]]:
    """Kept fraction → the loss of each seed; fractions ascend."""
    dense = {row["seed"]: row[name] for row in measured.find(task=task, contender=grid.DENSE_CELL)}
    found: dict[float, list[float]] = {}
    for row in measured.find(task=task, contender=contender):
        if row["seed"] in dense:
            found.setdefault(row["kept"], []).append(row[name] - dense[row["seed"]])
    return dict(sorted(found.items()))


def _named(axis, lost: dict[str, dict[float, list[float]]]) -> None:
    """Draw the lines of one family, each with its band over seeds and its name at the right end."""
    ends = {}
    for index, (contender, found) in enumerate(lost.items()):
        kept, values = list(found), list(found.values())
        means = [np.mean(one) for one in values]
        axis.plot(kept, means, color=f"C{index}", marker="osD^"[index % 4], markersize=4, linewidth=1.6)
        low, high = [min(one) for one in values], [max(one) for one in values]
        axis.fill_between(kept, low, high, color=f"C{index}", alpha=0.15)
        ends[contender] = kept[-1], means[-1], f"C{index}"
    to_page, least, above = axis.transData, 13 * axis.figure.dpi / 100, np.inf
    for contender, (kept, mean, color) in sorted(ends.items(), key=lambda one: -one[1][1]):
        # From the highest line down, each name below the previous one.
        above = min(to_page.transform((kept, mean))[1], above - least)
        place = to_page.inverted().transform((0, above))[1]
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5)}
        axis.annotate(
            contender, (kept, mean), (0.97, place), fontsize=8, color=color, va="center", arrowprops=leader
        )  # fmt: skip


def matrix(crossed: Results, path: Path) -> Path:
    """The effect of pruning for one task (rows) on another (columns): colours are log-likelihoods."""
    # Differences of each pair of tasks.
    sources = [name for name in cross.SOURCES if name != "dense" and crossed.find(source=name)]
    lost, texts = np.full((2, len(sources), len(cross.TARGETS)), np.nan)
    for i, source in enumerate(sources):
        for j, target in enumerate(cross.TARGETS):
            rows, dense = crossed.find(source=source, target=target), crossed.find(source="dense", target=target)
            if rows and dense:
                accuracy, loglik = differences(rows, dense)
                lost[i, j], texts[i, j] = loglik.value, accuracy.value

    # Colours. Long answers lose tens of nats, single words one or two: a logarithmic scale shows both.
    figure, axis = pyplot.subplots(figsize=(9.5, 1.6 + 0.8 * len(sources)))
    limit = max(1.0, np.nanmax(np.abs(lost))) if np.isfinite(lost).any() else 1.0
    scale = SymLogNorm(linthresh=0.5, vmin=-limit, vmax=limit, base=10)
    shown = axis.imshow(lost, cmap="RdBu", norm=scale, aspect="auto")
    for i, j in np.ndindex(lost.shape):
        if np.isfinite(lost[i, j]):
            dark = abs(scale(lost[i, j]) - 0.5) > 0.3
            text = f"{lost[i, j]:+.2f} nats\nacc {texts[i, j]:+.3f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")

    # Labels of tasks and colours.
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
