"""Printing the result of a command."""

import json
import sys
from typing import Any

from sieve.utils import streams
from sieve.utils.terminal import printable


def print_json(value: Any) -> None:
    """Print a result for machines."""
    # ASCII works with every encoding of the terminal, and has no control characters.
    print(json.dumps(value, indent=2))


def say_saved(saved: str) -> None:
    """If standard output did not take the result, say on standard error what was saved; this is no failure."""
    if streams.output_error() is not None:
        print(f"sieve: {printable(saved)}", file=sys.stderr)
        streams.forgive()
