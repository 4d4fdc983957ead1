"""Files that a pruned model keeps when it is saved again, for example after an adapter was merged into it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.tasks.stored import TASK_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def carry_report(model: PreTrainedModel, folder: Path) -> dict[str, Any] | None:
    """Copy recipe and task of the folder that `model` was loaded from into `folder`; returns its report, if it has one.

    A note in the report says that its numbers are of that folder's model.
    """
    origin = Path(str(getattr(model, "name_or_path", "") or "."))
    if origin == Path(".") or not (origin / "report.json").is_file():
        return None
    try:
        report = json.loads((origin / "report.json").read_text(encoding="utf-8"))
        notes = [*report.get("notes", ())]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        # The report is damaged; `sieve info` reports that.
        return None
    for name in ("recipe.yaml", TASK_FILE):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    note = f"these numbers are of {origin.name}; from it this model was loaded, changed and saved again"
    return {**report, "notes": [*notes, note]}
