"""Progress of long work: a named stage with a bar, a rate and an estimate, on standard error.

The library is silent unless asked: `with progress.shown():` (the command line does) turns it on.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
_shown = False


@contextmanager
def shown(on: bool = True) -> Iterator[None]:
    """Show (or hide) progress inside the block."""
    global _shown
    before, _shown = _shown, on
    try:
        yield
    finally:
        _shown = before


def say(message: str) -> None:
    """A line for the user, printed only where progress is shown."""
    if _shown:
        console.print(message, soft_wrap=True)


@contextmanager
def bar(description: str, total: int, unit: str, summary: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)` for work of `total` units; the bar goes when done and leaves a line with time and rate.

    Without a terminal only that line is printed; `summary=False` leaves it out.
    """
    done = 0
    if not _shown:
        yield lambda n: None
        return
    started = time.perf_counter()
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress.advance(task, n)

        yield advance
    seconds = time.perf_counter() - started
    if summary:
        say(f"  {description}: {done:,} {unit} in {seconds:.1f} s ({done / max(seconds, 1e-9):,.0f}/s)")
