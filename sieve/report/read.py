"""Reading a report back."""

import json
from pathlib import Path
from typing import Any

from sieve.errors import InputError, StorageError


def read_report(folder: str | Path) -> dict[str, Any]:
    """`report.json` of a pruned model's folder."""
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no report.json: name a folder that `sieve prune` made")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StorageError(f"{path} is damaged: {error}") from None
