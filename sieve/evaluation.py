"""`sieve eval`: a stored model's score on a task, alone or against another model."""

from pathlib import Path
from typing import Any

from sieve.errors import InputError
from sieve.fitness import Scores, evaluate
from sieve.fitness.chance import Chance, chance_level
from sieve.fitness.intervals import bootstrap, paired
from sieve.models import load_model
from sieve.recipe import read_recipe
from sieve.tasks import load_task
from sieve.utils.messages import shorten


def evaluate_source(
    source: str,
    task: str | None = None,
    split: str = "test",
    against: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    seed: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Score the model at `source` on one split; with `against`, also the paired difference to that model.

    Code that a model brings runs only with `trust_remote_code`.
    Task and seed default to those of the recipe in a pruned folder. Returns plain numbers, ready for JSON: "chance" and
    "majority" are what knowing nothing scores on the split (None where the task has none).
    """
    recipe = _recipe(source)
    task_name = task or recipe.get("task")
    if task_name is None:
        raise InputError(f"no task given, and {source} holds no recipe that names one: use --task")
    loaded = load_task(task_name)
    splits = loaded.splits(recipe.get("seed", 0) if seed is None else seed)
    if split not in splits:
        raise InputError(f"unknown split {shorten(split)}: choose one of {', '.join(splits)}")

    def score(source: str) -> Scores:
        model, tokenizer = load_model(source, dtype, device, trust_remote_code)
        return evaluate(model, tokenizer, loaded, splits[split])

    scores = score(source)
    result = {
        "model": source,
        "task": loaded.name,
        "split": split,
        "accuracy": vars(bootstrap(scores.score)),
        **_chance(chance_level(loaded, splits[split])),
        "loglik": vars(bootstrap(scores.loglik)),
        "tokens": scores.tokens,
    }
    if against is not None:
        other = score(against)
        result |= {
            "against": against,
            "accuracy_difference": vars(paired(scores.score, other.score)),
            "loglik_difference": vars(paired(scores.loglik, other.loglik)),
        }
    return result


def _chance(level: Chance | None) -> dict[str, float | None]:
    return {"chance": None, "majority": None} if level is None else vars(level)


def _recipe(source: str) -> dict[str, Any]:
    path = Path(source) / "recipe.yaml"
    return read_recipe(path) if path.is_file() else {}
