"""What a model pruned for one task keeps of others: as the closed form leaves it, healed without labels, and tuned.

python -m bench.generalisation run      # appends to bench/results/generalisation.jsonl; a second run resumes
python -m bench.generalisation table    # Markdown

Each source task's model is tested on its own test split, on another data set of the same kind of task and on general
text; no row of either takes part in pruning or healing.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.cells import RESULTS, Results, differences, packed, signed, work_through
from sieve.evaluation.scoring import evaluate
from sieve.healing.config import LABEL_FREE, TUNED
from sieve.models.loading import load_model
from sieve.run.heal import heal_folder
from sieve.run.pipeline import prune
from sieve.run.recipe import Recipe
from sieve.tasks import Task, load_task
from sieve.tasks.general import GENERAL, general_text

KEY = ("source", "stage", "target", "seed", "kept")
OTHERS = {"countries": "capitals", "geography": "capitals", "piqa": "commonsense_qa", "boolq": "pubmed_qa"}
"""Task that a model is pruned for → another data set of its kind."""

DENSE, PRUNED = "dense", "pruned"
STAGES = (DENSE, PRUNED, LABEL_FREE, TUNED)
# So many texts are read; more would take longer than the healing.
_TEXTS = 64


def cells(sources: list[str], seed: int, kept: float) -> Iterator[dict[str, Any]]:
    """All that is measured of one source's models, then the next source."""
    for source in sources:
        for stage in STAGES:
            for target in (source, OTHERS[source], GENERAL):
                yield {"source": source, "stage": stage, "target": target, "seed": seed, "kept": kept}


class Models:
    """The models of each source task, made when they are first asked for, in folders that the next run finds again."""

    def __init__(self, model: str, folder: Path):
        self.model, self.folder = model, folder
        # A model is tested on several targets, one after the other.
        self._loaded = lru_cache(maxsize=1)(load_model)

    def measured(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The row of a cell: scores on the target's test split, of general text on its first texts."""
        stage, seed = cell["stage"], cell["seed"]
        model, tokenizer = self._loaded(self.model if stage == DENSE else str(self._made(cell)))
        task = _target(cell["target"])
        examples = task.splits(seed)["test"]
        scores = evaluate(model, tokenizer, task, examples[:_TEXTS] if cell["target"] == GENERAL else examples)
        return {"accuracy": scores.accuracy, "loglik": scores.mean_loglik, "scores": packed(scores)}

    def _made(self, cell: Mapping[str, Any]) -> Path:
        source, stage, seed, kept = cell["source"], cell["stage"], cell["seed"], cell["kept"]
        place = self.folder / f"{Path(source).stem}-{seed}-{kept:g}-{stage}"
        if place.exists():
            return place
        if stage != PRUNED:
            heal_folder(self._made({**cell, "stage": PRUNED}), place, kind=stage)
            return place
        prune(
            Recipe(
                self.model, source, seed=seed, kept=kept, method="widths", shared_input=True, bottlenecks=0,
                allow_no_signal=True,
            ),
            place,
        )  # fmt: skip
        return place


def _target(name: str) -> Task:
    return general_text() if name == GENERAL else load_task(name)


def table(results: Results) -> str:
    """The table as Markdown: a line per source and stage, with differences to the dense model."""
    lines = [
        "Test accuracy, and of general text the log-likelihood of a token in nats; below the dense model's numbers, "
        "the paired differences to it, with 95 % intervals\n",
        "| pruned for | model | own task | another data set | general text |",
        "|---|---|---|---|---|",
    ]
    for source in dict.fromkeys(row["source"] for row in results):
        for stage in STAGES:
            rows = [
                next(iter(results.find(source=source, stage=stage, target=target)), None)
                for target in (source, OTHERS.get(source), GENERAL)
            ]
            if not any(rows):
                continue
            shown = [_shown(results, row) if row else "–" for row in rows]
            removed = "" if stage == DENSE else f", {1 - next(filter(None, rows))['kept']:.0%} removed"
            other = f"`{OTHERS[source]}`: " if source in OTHERS else ""
            lines.append(f"| `{source}`{removed} | {stage} | {shown[0]} | {other}{shown[1]} | {shown[2]} |")
    return "\n".join(lines)


def _shown(results: Results, row: Mapping[str, Any]) -> str:
    """A row's value, or its difference to the dense model's."""
    by_likelihood = row["target"] == GENERAL
    dense = results.find(source=row["source"], stage=DENSE, target=row["target"], seed=row["seed"], kept=row["kept"])
    if row["stage"] == DENSE or not dense:
        return f"{row['loglik' if by_likelihood else 'accuracy']:.3f}"
    return signed(differences([row], dense)[by_likelihood])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.generalisation", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--results", type=Path, default=RESULTS / "generalisation.jsonl")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sources", nargs="+", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=float, default=0.5, help="fraction of the prunable parameters (default: 0.5)")
    parser.add_argument("--folder", type=Path, help="keep the models here (default: none are kept)")
    chosen = parser.parse_args(arguments)
    results = Results(chosen.results, KEY)
    if chosen.what == "table":
        print(table(results))
        return
    with tempfile.TemporaryDirectory() as own:
        models = Models(chosen.model, chosen.folder or Path(own))
        wanted = cells(chosen.sources, chosen.seed, chosen.kept)
        failed = work_through(results, wanted, models.measured, {"model": chosen.model})
    if failed:
        sys.exit(f"{failed} cells failed")


if __name__ == "__main__":
    main()
