"""What every command does with its result."""

import json
import sys
from typing import Any

from sieve.utils import streams
from sieve.utils.terminal import printable


def print_json(value: Any) -> None:
    """Print a result for machines."""
    print(json.dumps(value, indent=2))  # ASCII: whatever the encoding of the terminal, and no control characters


def say_saved(saved: str) -> None:
    """Say on standard error what was saved, where standard output did not take the result; that is no failure."""
    if streams.output_error() is not None:
        print(f"sieve: {printable(saved)}", file=sys.stderr)
        streams.forgive()
