"""`sieve heal`: a finished folder's model, healed by the dense model that it was made from, into a new folder."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sieve.checkpoint.folder import save
from sieve.checkpoint.hf_quantizer import SieveConfig
from sieve.checkpoint.size import model_bytes
from sieve.checkpoint.torchao import first_quantized
from sieve.compression.vocabulary.trim import has_fewer_tokens, match_vocabulary_
from sieve.errors import InputError
from sieve.evaluation.check import check_splits
from sieve.evaluation.ngrams import ngram_accuracies
from sieve.healing.config import LABEL_FREE, LORA, TUNED, check_kind, check_unlabelled
from sieve.healing.heal import check_steps, heal_, healing_key, lessons_of, require_vocabulary
from sieve.healing.lora import require_adaptable
from sieve.healing.teacher import Lessons, require_rows
from sieve.healing.unlabelled import unlabelled_examples
from sieve.models.loading import load_model
from sieve.nn.formats.quantized_pair import QuantizedPair
from sieve.run.evaluate import own_recipe, own_task
from sieve.run.measured import MEASURED, Measured
from sieve.run.report.healed import Controls, healed_report
from sieve.run.report.html.run_page import run_pages
from sieve.run.report.read import read_report
from sieve.run.unfinished_healing import unfinished_healing
from sieve.tasks import Example, Task, load_task
from sieve.tasks.stored import Data, describe_data
from sieve.utils import progress
from sieve.utils.files import require_new, require_space


def heal_folder(
    source: str | Path,
    output: str | Path,
    teacher: str | None = None,
    steps: int | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    kind: str = LABEL_FREE,
    unlabelled: str | Path | None = None,
) -> dict[str, Any]:
    """Heal the model in `source` and save it to `output`; returns the report that `output/report.json` holds.

    An interrupted healing leaves a folder `OUTPUT.healing`: called again with the same arguments, it goes on.

    Args:
        source: folder that `sieve prune` made; it stays as it is.
        teacher: the dense model; None: the one that the folder's report names.
        steps, kind, unlabelled: as for `sieve.heal`. For "tuned", the dense model is tuned too, as a baseline.
        data: file or folder instead of the one that the task names.

    Raises: InputError for a folder that is not pruned or has other data, too few calibration rows, or a teacher with
        another vocabulary; nothing is left behind then.
    """
    # Find mistakes in the arguments and the data before a model is loaded.
    started = time.perf_counter()
    check_steps(steps)
    check_kind(kind)
    check_unlabelled(unlabelled, kind)
    output, report, recipe = require_new(output), read_report(source), own_recipe(str(source))
    task, seed = load_task(own_task(str(source), recipe), data), recipe.get("seed", 0)
    splits = task.splits(seed)
    found = describe_data(splits)
    _require_same_data(report, found, source)
    require_rows(task, splits["calibration"])
    more = unlabelled_examples(task, unlabelled, splits, seed)
    rows = [*splits["calibration"], *more]
    with unfinished_healing(output) as unfinished:
        # Load both models, and check everything that could fail after long work.
        model, tokenizer = load_model(str(source), device=device, trust_remote_code=trust_remote_code)
        _require_pruned(model, source)
        if kind == LORA:
            require_adaptable(model)
        dense, own = load_model(teacher or report["model"], model.dtype, device, trust_remote_code)
        if not has_fewer_tokens(tokenizer, own):
            require_vocabulary(model, dense)
        check_splits(model, tokenizer, task, splits)
        require_space(output, model_bytes(model))
        # Measure the dense model: as it is and, if the vocabulary was trimmed, over the tokens that were kept.
        key = healing_key(model, tokenizer, task, rows, dense, steps, seed, kind)
        with unfinished.scores(key) as journal:
            measured = Measured(task, splits, found, journal)
            scores = measured("dense", dense, own)
            same_tokens = scores
            if match_vocabulary_(dense, own, tokenizer) is not None:
                require_vocabulary(model, dense)
                same_tokens = measured("dense, the same tokens", dense, tokenizer)
            # Compute the lessons; after that the dense model's memory can be freed, unless it is tuned too.
            checkpoint = unfinished.checkpoint("pruned", key)
            lessons = checkpoint.lessons(
                lambda: lessons_of(dense, tokenizer, task, splits["calibration"], steps, kind, more), rows
            )
            if kind != TUNED:
                del dense
            # Heal. A model tuned on labels is compared with the dense model tuned in the same way.
            healing = heal_(model, lessons, steps, seed, kind, checkpoint)
            healed = measured("healed", model, tokenizer)
            tuned = None
            if kind == TUNED:
                progress.say("  the dense model, tuned likewise")
                heal_(dense, lessons, steps, seed, kind, unfinished.checkpoint("dense", key))
                tuned = measured("tuned dense", dense, tokenizer)
        # Make the new folder.
        controls = Controls(letters_taught(task, lessons, splits), tuned)
        made = healed_report(
            report, healing.report(), scores, same_tokens, healed, controls, time.perf_counter() - started
        )
        recipe = {**recipe, "heal": kind, "heal_steps": steps}
        if unlabelled is not None:
            recipe["unlabelled"] = os.path.abspath(unlabelled)
        save(model, tokenizer, output, report=made, recipe=recipe, task=task, pages=run_pages(made, recipe))
    return made


def letters_taught(task: Task, lessons: Lessons, splits: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """Scores of a classifier of letters that learned, as the model did, from the dense model's answers; else empty."""
    measured = {split: splits[split] for split in MEASURED}
    return ngram_accuracies(task, lessons.taught, measured, lessons.answers) if lessons.answers else {}


def _require_pruned(model: PreTrainedModel, source: str | Path) -> None:
    config = getattr(model.config, "quantization_config", None)
    if not (isinstance(config, SieveConfig) and config.is_pruned):
        raise InputError(f"nothing in {source} is pruned, so there is nothing to heal: name a folder of `sieve prune`")
    if any(isinstance(format, QuantizedPair) for format in config.layers.values()) or first_quantized(model):
        raise InputError(f"{source} is quantised: heal the model that it was made from, and quantise the result")


def _require_same_data(report: Mapping[str, Any], now: Data, source: str | Path) -> None:
    """InputError if the data has changed: healing could then use rows that the model was judged on."""
    before = report.get("data") or {}
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        raise InputError(
            f"the task's data is not what {source} was made with ({', '.join(changed)}): restore it, or give --data"
        )
