"""Progress of long work: a named stage with a bar, a rate and an estimate, on standard error.

Progress is shown where standard error is a terminal. `with sieve.progress.shown():` shows it anywhere (the command line
does so), `with sieve.progress.shown(False):` nowhere.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from sieve.utils.terminal import console as make_console
from sieve.utils.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console

_shown: bool | None = None
_noted: set[str] = set()
_drawing = False


@contextmanager
def shown(on: bool = True) -> Iterator[None]:
    """Show (or hide) progress inside the block, whether or not standard error is a terminal."""
    global _shown
    before, _shown = _shown, on
    try:
        yield
    finally:
        _shown = before


def is_shown() -> bool:
    """Whether progress is shown at the moment."""
    return _on_a_terminal() if _shown is None else _shown


def say(message: str, style: str = "") -> None:
    """A line for the user, printed only where progress is shown; the message is printed as it is, without markup."""
    if is_shown():
        console().print(message, style=style, soft_wrap=True)


def note(message: str) -> None:
    """A line that the user should not miss."""
    say(f"  note: {message}", style="yellow")


def note_once(message: str) -> None:
    """`note`, but only the first time in this process."""
    if is_shown() and message not in _noted:
        _noted.add(message)
        note(message)


def warn(message: str) -> None:
    """`note_once` where progress is shown, else a Python warning."""
    if is_shown():
        note_once(message)
    else:
        warnings.warn(message, stacklevel=3)


@contextmanager
def bar(description: str, total: int | None, unit: str, summary: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)` for work of `total` units (None: not known yet); the bar goes when done and leaves a
    line with time and rate.

    Without a terminal only that line is printed; `summary=False` leaves it out.
    """
    global _drawing
    done = 0
    if not is_shown():
        yield lambda n: None
        return
    from rich import progress as rich

    # One bar at a time: a terminal has one last line.
    draws, before = console().is_terminal and not _drawing, _drawing
    started = time.perf_counter()
    columns = (
        rich.TextColumn("  {task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn(unit, markup=False),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console(), transient=True, disable=not draws) as progress:
        task = progress.add_task(printable(description), total=total)

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress.advance(task, n)

        _drawing = before or draws
        try:
            yield advance
        finally:
            _drawing = before
    seconds = time.perf_counter() - started
    if summary:
        say(f"  {description}: {done:,} {unit} in {seconds:.1f} s ({done / max(seconds, 1e-9):,.0f}/s)")


@cache
def console() -> "Console":
    """The terminal of this module; rich is imported with it."""
    return make_console(stderr=True)


def _on_a_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False
