"""Plots of speed against kept fraction: one panel per operator, model and matrix."""

from pathlib import Path

NAMES = {"ours": "this library", "two": "library products", "compiled": "torch.compile"}
STYLES = {"ours": "-", "two": "--", "compiled": ":"}


def plot(rows: list[dict], path: Path) -> None:
    """Draw the rows of a benchmark that have a kept fraction, of CUDA graphs if there are any, else eager ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The rows of one mode, and a panel for each matrix.
    mode = "graph" if any(row["mode"] == "graph" for row in rows) else "eager"
    rows = [row for row in rows if row["kept"] != "" and row["mode"] == mode and row["contender"] in NAMES]
    panels = sorted({(row["operator"], row["model"], row["matrix"], row["dtype"]) for row in rows})
    if not panels:
        raise ValueError("nothing to plot: no rows with a kept fraction")
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    size = 4.6 * num_columns, 3.6 * num_rows

    # In a panel, a colour per number of rows and a style per contender.
    figure, axes = pyplot.subplots(num_rows, num_columns, figsize=size, squeeze=False, sharex=True)
    for axis, panel in zip(axes.flat, panels, strict=False):
        mine = [row for row in rows if (row["operator"], row["model"], row["matrix"], row["dtype"]) == panel]
        counts = sorted({row["rows"] for row in mine})
        for color, count in enumerate(counts):
            for contender, style in STYLES.items():
                line = [row for row in mine if row["rows"] == count and row["contender"] == contender]
                line.sort(key=lambda row: row["kept"])
                label = f"{count} row{'s' * (count > 1)}" if contender == "ours" else None
                points = [row["kept"] for row in line], [row["speed_over_dense"] for row in line]
                axis.plot(*points, style, color=f"C{color % 10}", marker=".", label=label)
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.set_title(" ".join(panel[:3]) + f"\n{panel[3]}", fontsize=9)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(pyplot.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.legend(fontsize=7)

    # Labels on the outer panels only.
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("kept fraction of the parameters")
    for axis in axes[:, 0]:
        axis.set_ylabel("speed over dense")
    styles = ", ".join(f"{NAMES[name]} {style}" for name, style in STYLES.items())
    figure.suptitle(f"{rows[0]['device']} ({mode}): {styles}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
