"""`sieve eval`: a stored model's score on a task, alone or against another model."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sieve.compression.vocabulary.trim import has_fewer_tokens, match_vocabulary_
from sieve.errors import InputError
from sieve.evaluation.chance import Chance, control_levels
from sieve.evaluation.check import check_splits
from sieve.evaluation.confidence import bootstrap, paired
from sieve.evaluation.scoring import Scores, evaluate
from sieve.models.adapter import report_folder
from sieve.models.config import find_model
from sieve.models.loading import load_model
from sieve.run.recipe import read_recipe
from sieve.run.report.read import read_report
from sieve.searchers.signal import signal_note
from sieve.tasks import Example, builtin_tasks, load_task
from sieve.tasks.splits import check_split
from sieve.tasks.stored import TASK_FILE, describe_data
from sieve.utils import progress


def evaluate_source(
    source: str,
    task: str | None = None,
    split: str = "test",
    against: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    seed: int | None = None,
    trust_remote_code: bool = False,
    data: str | Path | None = None,
) -> dict[str, Any]:
    """Score the model at `source` on one split; with `against`, also the paired difference to that model.

    Code that a model brings runs only with `trust_remote_code`. Task and seed default to those that a pruned folder was
    made with; `data` is a file or folder instead of the task's.

    Returns plain numbers, ready for JSON. `same_data` says whether the examples are those of the folder's report, and
    is None if there is nothing to compare. "chance", "majority" and "ngrams" are scores without a model on the split
    (None if the task has none); "notes" names those that the model does not beat. If one of the two models has a
    trimmed vocabulary of the other's, likelihoods are compared over the tokens that both have.
    """
    # Find mistakes in the arguments before a model is loaded.
    check_split(split)
    for name in (source, against):
        if name is not None:
            find_model(name)
    # Use the folder's own task and seed by default, and say if its data has changed.
    recipe = own_recipe(source)
    loaded = load_task(task or own_task(source, recipe), data)
    splits = loaded.splits(recipe.get("seed", 0) if seed is None else seed)
    same = _same_data(source, {split: splits[split]}) if task is None and seed is None else None
    if same is False:
        progress.note(f"the {split} data has changed since {source} was made: its report is of other data")

    def score(source: str, like: PreTrainedTokenizerBase | None = None) -> tuple[Scores, PreTrainedTokenizerBase]:
        """Scores of the model, and its tokenizer. With `like`, the model is reduced to the tokens of `like`."""
        model, tokenizer = load_model(source, dtype, device, trust_remote_code)
        if like is not None:
            match_vocabulary_(model, tokenizer, like)
            tokenizer = like
        check_splits(model, tokenizer, loaded, {split: splits[split]})
        return evaluate(model, tokenizer, loaded, splits[split]), tokenizer

    # Score the model, and compare it with what needs no model.
    scores, tokenizer = score(source)
    level = control_levels(loaded, {split: splits[split]}, splits["calibration"])[split]
    note = signal_note(split, scores, level, "the model")
    result = {
        "model": source,
        "task": loaded.name,
        "split": split,
        "same_data": same,
        "accuracy": vars(bootstrap(scores.score)),
        **_controls(level),
        "notes": [] if note is None else [note],
        "loglik": vars(bootstrap(scores.loglik)),
        "tokens": scores.tokens,
    }
    # Compare with the other model, example by example.
    if against is not None:
        other, others = score(against)
        # A trimmed vocabulary makes every likelihood larger, so the model with more tokens is scored again with fewer.
        pairs = {"accuracy": (scores, other), "loglik": (scores, other)}
        if has_fewer_tokens(tokenizer, others):
            pairs["loglik"] = scores, score(against, tokenizer)[0]
        elif has_fewer_tokens(others, tokenizer):
            pairs["loglik"] = score(source, others)[0], other
        if has_fewer_tokens(tokenizer, others) or has_fewer_tokens(others, tokenizer):
            few = min(len(tokenizer), len(others))
            result["notes"].append(f"likelihoods are compared over the {few:,} tokens that both models have")
        result |= {
            "against": against,
            "accuracy_difference": _difference(*pairs["accuracy"], "score"),
            "loglik_difference": _difference(*pairs["loglik"], "loglik"),
        }
    return result


def _difference(scores: Scores, other: Scores, measure: str) -> dict[str, float]:
    mine, theirs = _in_common(scores, other)
    return vars(paired(getattr(scores, measure)[mine], getattr(other, measure)[theirs]))


def _in_common(scores: Scores, other: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Indices, in each model's results, of the examples that both could score: each tokenizer may leave some out."""
    asked = [np.arange(len(one.score)) if one.examples is None else one.examples for one in (scores, other)]
    common, mine, theirs = np.intersect1d(*asked, assume_unique=True, return_indices=True)
    if not len(common):
        raise InputError("the two models can score no example in common: give the task longer texts")
    if len(common) < max(map(len, asked)):
        progress.note(f"the comparison covers the {len(common):,} examples that both models' tokenizers can score")
    return mine, theirs


def _controls(level: Chance | None) -> dict[str, float | None]:
    return {"chance": None, "majority": None, "ngrams": None} if level is None else vars(level)


def own_task(source: str, recipe: Mapping[str, Any]) -> str:
    """The task that a pruned folder keeps, or the one that its recipe names, if an earlier version made the folder."""
    kept = report_folder(source) / TASK_FILE
    if kept.is_file():
        return str(kept)
    name = recipe.get("task")
    if name is None:
        raise InputError(f"no task given, and {source} holds no recipe that names one: use --task")
    if name not in builtin_tasks() and not os.path.isfile(os.path.expanduser(name)):
        raise InputError(f"{source} keeps no task of its own, and there is no {name} here: use --task FILE")
    return name


def _same_data(source: str, splits: Mapping[str, Sequence[Example]]) -> bool | None:
    """Whether these are the examples of the folder's report; None if the report does not say."""
    if not (report_folder(source) / "report.json").is_file():
        return None
    before = read_report(source).get("data")
    if not isinstance(before, Mapping) or any(not isinstance(before.get(name), Mapping) for name in splits):
        return None
    now = describe_data(splits)
    return all(before[name] == now[name] for name in splits)


def own_recipe(source: str) -> dict[str, Any]:
    """The recipe of a pruned folder; empty where it has none."""
    path = report_folder(source) / "recipe.yaml"
    return read_recipe(path) if path.is_file() else {}
