"""The model card (README.md) of a pruned model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from sieve.checkpoint.card_header import header
from sieve.nn.formats.base import LayerFormat, formats
from sieve.utils.terminal import printable

# The first lines that a reader sees: without Sieve, transformers only says that a file is missing.
WARNING = (
    "**Load this model only after `import sieve`, where Sieve is installed (from its source: `pip install -e .`): "
    "without it transformers finds no weights here.**"
)
_TRUST = (
    "Without Sieve, `trust_remote_code=True` runs `modeling_sieve.py` of this folder: plain torch, slower, no saving."
)
_PURPOSE = {
    "multiple_choice": (
        "This model **chooses**: it was judged by which of the given choices it finds likelier. Ask it by "
        "`sieve predict FOLDER ROWS.jsonl`. It was not judged by what it writes: its free text usually loops."
    ),
    "generation": (
        "This model **writes** the task's answers: `sieve predict FOLDER ROWS.jsonl` for many rows, "
        '`sieve generate FOLDER "…"` for one. It may have unlearned other text.'
    ),
    "perplexity": (
        "This model was judged by how likely it finds the task's texts (`sieve eval FOLDER`), not by what it writes."
    ),
}

_USE = """\
```python
import sieve
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

`sieve.load("path/to/this/folder")` returns both, and checks that every weight was found."""


def model_card(
    layers: Mapping[str, LayerFormat],
    report: Mapping[str, Any] | None = None,
    stacked: bool = False,
    own_code: bool = False,
) -> str:
    """The card: a YAML header for hubs, and Markdown on the model's purpose, loading, size and accuracy.

    report: the run's report, if there is one.
    stacked: matrices that read one input are stored as one.
    """
    report = report or {}
    # Begin with the warning, since the model does not load without Sieve.
    needs_sieve = stacked or any(format.modules for format in layers.values())
    parts = [WARNING if own_code else f"{WARNING} {_TRUST}"] if needs_sieve else []
    parts.append("# A causal language model pruned for one task" if layers else "# A causal language model, not pruned")
    if "model" in report and "task" in report:
        tolerance = f", tolerance {report['tolerance']:.1%}" if "tolerance" in report else ""
        name = str(report["model"])
        # Cards are shared, so a folder of this machine shows only its last name.
        name = Path(name).name if Path(name).is_absolute() else name
        parts.append(f"Made by Sieve from {_code(name)} for the task {_code(report['task'])}{tolerance}.")
    if report.get("task_type") in _PURPOSE:
        parts.append(_PURPOSE[report["task_type"]])
    # Describe each kind of layer, how to use the model, and how small and accurate it is.
    for kind in formats().values():
        own = [format for format in layers.values() if isinstance(format, kind)]
        if own and (summary := kind.summary(own)):
            parts.append(summary)
    parts += ["## Use", _USE.replace('folder")', 'folder", trust_remote_code=True)') if own_code else _USE]
    if size := _size(report):
        parts += ["## Size", size]
    if accuracy := _accuracy(report):
        parts += ["## Accuracy", accuracy]
    if healing := report.get("healing"):
        held = healing["held_back"]
        parts.append(
            f"Healed ({healing['kind']}): {healing['steps']} gradient steps towards {_taught_by(healing)} on "
            f"calibration rows ({held['before']:.3f} → {held['after']:.3f} nats from that on rows held back)."
        )
    if report:
        parts.append("`report.json` has every number of the run.")
    text = "\n\n".join(parts)
    return str(ModelCard(f"---\n{header(report, bool(layers))}\n---\n\n{text}\n"))


def _taught_by(healing: Mapping[str, Any]) -> str:
    return "the labels" if healing["kind"] == "tuned" else "the dense model"


def _size(report: Mapping[str, Any]) -> str:
    lines = []
    parameters, sizes = report.get("parameters", {}), report.get("bytes", {})
    if "prunable_removed" in parameters:
        lines.append(f"- parameters removed among the prunable matrices: {parameters['prunable_removed']:.1%}")
    if "model_removed" in parameters:
        lines.append(
            f"- parameters removed in the whole model (embeddings and head included): {parameters['model_removed']:.1%}"
        )
    if {"dense", "pruned"} <= sizes.keys():
        lines.append(f"- weights: {sizes['pruned'] / 1e6:,.1f} MB, dense {sizes['dense'] / 1e6:,.1f} MB")
    return "\n".join(lines)


def _accuracy(report: Mapping[str, Any]) -> str:
    accuracy = report.get("accuracy", {})
    dense, pruned = accuracy.get("dense", {}), accuracy.get("pruned", {})
    rows = [
        f"| {_cell(split)} | {_interval(dense[split])} | {_interval(pruned[split])} | {pruned[split]['n']:,} |"
        for split in pruned
        if split in dense
    ]
    if not rows:
        return ""
    head = "| split | dense | pruned | examples |\n| --- | --- | --- | --- |\n"
    parts = [head + "\n".join(rows), "In brackets: 95 % bootstrap intervals."]
    names = {"chance": "chance", "majority": "always the most frequent answer", "ngrams": "an n-gram classifier"}
    levels = {name: accuracy.get(key) for key, name in names.items()}
    known = [f"{name} {level['test']:.3f}" for name, level in levels.items() if level and level.get("test") is not None]
    if known:
        parts[-1] += f" Without a language model, on the test split: {', '.join(known)}."
    return "\n\n".join(parts + [f"Note: {_cell(note)}" for note in report.get("notes", ())])


def _interval(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _code(text: str) -> str:
    """A code span that shows any text literally: its fence is longer than every run of backticks in the text."""
    text = printable(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def _cell(text: str) -> str:
    """Text for a table cell, with markup escaped."""
    return re.sub(r"([\\`*_{}\[\]<>|&#~!])", r"\\\1", printable(text))
