"""A report as tables on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from sieve.run.report.sentence import sentence

CONTROLS = {
    "chance": "chance",
    "majority": "always the most frequent answer",
    "ngrams": "n-gram classifier trained on the calibration rows",
}
# Number of matrices named per reason for which they stay dense; `report.json` names all.
_NAMED = 4


def show_report(report: dict[str, Any], console: Console) -> None:
    """Print size, accuracy by split, and seconds by stage."""
    # Sizes.
    parameters, sizes = report["parameters"], report["bytes"]
    # A line of its own, because a table's title would break a long path into pieces.
    title = f"{report['model']} pruned for {report['task']} (ε = {report['tolerance']:.1%})"
    console.print(title, style="italic", soft_wrap=True)
    table = Table()
    for column in ("", "dense", "pruned", "removed"):
        table.add_column(column, justify="left" if not column else "right")
    prunable, model = parameters["prunable"], parameters["model"]
    table.add_row("prunable parameters", *_pair(prunable, 1e6, "M"), f"{parameters['prunable_removed']:.1%}")
    table.add_row("all parameters", *_pair(model, 1e6, "M"), f"{parameters['model_removed']:.1%}")
    table.add_row("weights", *_pair(sizes, 2**20, "MiB"), f"{1 - sizes['pruned'] / sizes['dense']:.1%}")
    console.print(table)

    # Accuracies and likelihoods by split.
    table = Table(title="accuracy with 95 % intervals; the last two columns are pruned − dense, paired")
    for column in ("split", "examples", "dense", "pruned", "accuracy", "log-lik."):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, dense in report["accuracy"]["dense"].items():
        pruned, difference = report["accuracy"]["pruned"][split], report["difference"]
        table.add_row(
            split,
            str(dense["n"]),
            _within(dense),
            _within(pruned),
            _within(difference["accuracy"][split], "+"),
            _within(difference["loglik"][split], "+"),
        )
    console.print(table)
    # One line for each further thing that the report has.
    if (line := chance_line(report["accuracy"], "test")) is not None:
        console.print(line, soft_wrap=True)
    if report.get("healing"):
        console.print(healing_line(report["healing"]), soft_wrap=True)
    if report.get("quantization"):
        console.print(quantization_line(report["quantization"]), soft_wrap=True)
    for one in report.get("rounds") or ():
        console.print(round_line(one), soft_wrap=True)
    for note in report.get("notes", ()):
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    if report.get("left_dense"):
        console.print(_left_dense(report["left_dense"]), soft_wrap=True)
    if report.get("pivoted"):
        console.print("Pairs are stored pivoted: a pair of rank r has r (m + n - r) parameters.")
    if report.get("masks"):
        console.print(_masks(report["masks"]), soft_wrap=True)
    if not report["resolution"]["sufficient"]:
        console.print(_noise(report["resolution"]), soft_wrap=True)
    # The cost of the search, and what it found out about matrices.
    search = report["search"]
    if search["layer_tokens_spent"]:
        console.print(
            f"The search scored {search['candidates']} candidates with {search['layer_tokens_spent']:,} layer-tokens; "
            f"without shortcuts it takes {search['layer_tokens_plain']:,} ({search['cost_ratio']:.1f} × as many)."
        )
    if times := search.get("layer_seconds"):
        console.print(_layer_times(times), soft_wrap=True)
    found = [one for one in report["bottlenecks"] or [] if one["breaks"]]
    if found:
        console.print(f"Bottlenecks (one level less breaks the tolerance): {', '.join(_names(found))}", soft_wrap=True)
    stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in report["seconds"].items())
    console.print(f"The run took {sum(report['seconds'].values()):.0f} s: {stages}")
    console.print(sentence(report), style="bold", soft_wrap=True)


def chance_line(numbers: dict[str, Any], split: str | None = None) -> str | None:
    """A line with the scores without a language model; None if the task has none.

    Args:
        numbers: has "chance", "majority" and "ngrams", each a number or a mapping by `split`; old reports lack them.
    """
    levels = {name: numbers.get(key) for key, name in CONTROLS.items()}
    if split is not None:
        levels = {name: (level or {}).get(split) for name, level in levels.items()}
    found = [f"{name} {level:.3f}" for name, level in levels.items() if level is not None]
    where = "" if split is None else f" ({split} split)"
    return f"Without a model{where}: {', '.join(found)}" if found else None


def healing_line(healing: dict[str, Any]) -> str:
    """A line on what healing did, with the score of a classifier of letters that learned from the same teacher."""
    held = healing["held_back"]
    taught = "the labels" if healing["kind"] == "tuned" else "the dense model"
    before = ", ".join(f"{split} {value['value']:.3f}" for split, value in healing["before"]["accuracy"].items())
    if healing.get("undone"):
        return "Healing is undone: the healed model was not within the tolerance, as the pruned one is"
    text = (
        f"Healed ({healing['kind']}), {healing['steps']} steps on {healing['rows']:,} calibration rows: on "
        f"{held['rows']} rows held back {held['before']:.3f} → {held['after']:.3f} nats from {taught}; accuracy "
        f"before: {before}"
    )
    if tuned := healing.get("tuned_dense"):
        value = tuned["accuracy"]["test"]["value"]
        text = f"{text}; the dense model tuned likewise: test {value:.3f}"
    letters = healing.get("ngrams_taught") or {}
    return f"{text}; n-gram classifier on the dense model's answers: test {letters['test']:.3f}" if letters else text


def quantization_line(quantization: dict[str, Any]) -> str:
    """A line on the model before its pairs were quantised."""
    before = quantization["before"]
    accuracy = ", ".join(f"{split} {value['value']:.3f}" for split, value in before["accuracy"].items())
    size = f"{before['bytes'] / 2**20:.1f} MiB"
    return f"The pairs are quantised ({quantization['kind']}); before: {size}, accuracy {accuracy}"


def round_line(one: dict[str, Any]) -> str:
    """A line on the end of a round of pruning and healing."""
    after = ", ".join(f"{split} {value['value']:.3f}" for split, value in one["after"]["accuracy"].items())
    verdict = "within the tolerance" if one["held"] else "not within the tolerance"
    return f"Round {one['round']}: {one['prunable_removed']:.1%} removed, healed {after}: {verdict}"


def _layer_times(times: dict[str, Any]) -> str:
    """A line on what the search took layers' times to be, and what they are."""
    each = [
        f"{which} {1e3 * times['measured'][which]:.2f} ms (predicted {1e3 * times['predicted'][which]:.2f})"
        for which in ("dense", "pruned")
    ]
    return f"All searched layers, one after the other, {times['rows']} tokens: {', '.join(each)}"


def _names(bottlenecks: list[dict[str, Any]]) -> list[str]:
    return [name for one in bottlenecks for name in one["names"]]


def _left_dense(left: dict[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    parts = [
        f"{', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if names[_NAMED:] else ''} ({reason})"
        for reason, names in by_reason.items()
    ]
    return f"Left dense: {'; '.join(parts)}"


def _masks(masks: dict[str, Any]) -> str:
    saved = "and 2:4 weights run faster here" if masks["runs_sparse"] else "and no time on this machine"
    return f"Removed parameters are zeros ({masks['pattern']}): masks save no bytes on disk {saved}."


def _noise(resolution: dict[str, Any]) -> str:
    text = (
        f"The fitness split cannot tell so small a tolerance from noise: it allows a loss of "
        f"{resolution['tolerance']:.3f}, and accuracy has a standard error of {resolution['standard_error']:.3f}."
    )
    needed = resolution["needed_n"]
    return f"{text} {needed:,} examples would be enough." if needed else text


def _pair(values: dict[str, int], unit: float, name: str) -> tuple[str, str]:
    return f"{values['dense'] / unit:.1f} {name}", f"{values['pruned'] / unit:.1f} {name}"


def _within(interval: dict[str, float], sign: str = "") -> str:
    return f"{interval['value']:{sign}.3f}  [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"
