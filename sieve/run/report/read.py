"""Reading a report back."""

import io
import json
from pathlib import Path
from typing import Any

from sieve.errors import InputError, StorageError
from sieve.models.adapter import is_adapter, report_folder
from sieve.run.report.show import show_report
from sieve.utils.messages import one_line
from sieve.utils.terminal import console


def read_report(folder: str | Path) -> dict[str, Any]:
    """`report.json` of a pruned model's folder; for an adapter that of its base model, with a note.

    Raises: InputError if it has none, StorageError if it is damaged.
    """
    path = report_folder(folder) / "report.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no report.json: name a folder that `sieve prune` made")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read or is damaged: {error}") from None
    try:
        # A report that can be shown in full has every field that readers use.
        show_report(report, console(file=io.StringIO()))
        if not all(isinstance(kept, int | float) for kept in report["kept"].values()):
            raise TypeError("kept must hold numbers")
    except Exception as error:
        # A missing field, or one of another type, can fail in any way.
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise StorageError(f"{path} is damaged: {reason}; `sieve prune` makes it") from None
    if is_adapter(folder):
        note = f"these numbers are of the base model, without the adapter {folder}: `sieve eval {folder}` scores both"
        report["notes"] = [*report.get("notes", ()), note]
    return report
