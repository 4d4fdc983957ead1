"""Progress of long work: one stream of events, which the terminal's bars, `logging` and trackers all listen to.

Bars and lines are shown where standard error is a terminal. `with sieve.progress.shown():` shows them anywhere (the
command line does so), `with sieve.progress.shown(False):` nowhere. Lines also go to the logger "sieve", whatever is
shown: `logging.basicConfig(level="INFO")` prints them as a program's own. `with sieve.progress.listening(callback):`
calls with every event.
"""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

from sieve.utils.messages import one_line
from sieve.utils.terminal import console as make_console
from sieve.utils.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_shown: bool | None = None
_muted = False
_noted: set[tuple[bool, str]] = set()
_log = logging.getLogger("sieve")
# Print nothing unless the program configures logging.
_log.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Event:
    """One step of progress, sent to all listeners.

    kind: a "line" for the user, an important "note", the "begin", each "advance" and the "end" of a
        piece of work, or "values" that were measured.
    text: the line; of work, what it is. style: of a line.
    done, total, unit: of a piece of work; `total` is None where it is not known.
    values: name → number. step: what they are counted by, such as candidates; None where they stand alone.
    """

    kind: Literal["line", "note", "begin", "advance", "end", "values"]
    text: str = ""
    style: str = ""
    done: int = 0
    total: int | None = None
    unit: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None


Listener = Callable[[Event], None]


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside the block `listener` is called with every event; if it fails, a note says so and it is not called again.

    Example:
        >>> with sieve.progress.listening(lambda event: print(event.kind, event.done, event.total)):
        ...     sieve.prune(recipe, "runs/mine")
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        if listener in _listeners:
            _listeners.remove(listener)


@contextmanager
def muted(on: bool = True) -> Iterator[None]:
    """Inside the block there are no events (or are again): for repeated work, or work that the user did not ask for."""
    global _muted
    before, _muted = _muted, on
    try:
        yield
    finally:
        _muted = before


def emit(event: Event) -> None:
    """Tell all listeners."""
    if _muted:
        return
    _terminal(event)
    _logged(event)
    for listener in list(_listeners):
        try:
            listener(event)
        except Exception as error:
            # A tracker may fail in any way, for example without a network; the run must go on.
            _listeners.remove(listener)
            note(f"a listener to progress failed and is not called again: {type(error).__name__}: {one_line(error)}")


def measured(values: Mapping[str, float], step: int | None = None) -> None:
    """Numbers for trackers: name → value."""
    emit(Event("values", values=values, step=step))


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
    return not _muted and (_on_a_terminal() if _shown is None else _shown)


def say(message: str, style: str = "") -> None:
    """A line for the user, printed only where progress is shown; the message is printed as it is, without markup."""
    emit(Event("line", message, style))


def note(message: str) -> None:
    """A line that the user should not miss."""
    emit(Event("note", message, "yellow"))


def note_once(message: str, always: bool = False) -> None:
    """`note`, but only the first time in this process (once more where the first was not shown).

    always: also where events are muted.
    """
    with muted(_muted and not always):
        key = is_shown(), message
        if not _muted and key not in _noted:
            _noted.add(key)
            note(message)


def warn(message: str) -> None:
    """`note_once` where progress is shown, else a Python warning."""
    if is_shown():
        note_once(message)
    else:
        warnings.warn(message, stacklevel=3)


@contextmanager
def bar(description: str, total: int | None, unit: str, summary: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)` for work of `total` units (None: not known yet). At the end the bar disappears and leaves a
    line with time and rate.

    Without a terminal only that line is printed; `summary=False` leaves it out.
    """
    done, started = 0, time.perf_counter()

    def advance(n: int) -> None:
        nonlocal done
        done += n
        emit(Event("advance", description, done=done, total=total, unit=unit))

    emit(Event("begin", description, total=total, unit=unit))
    try:
        yield advance
    finally:
        emit(Event("end", description, done=done, total=total, unit=unit))
    seconds = time.perf_counter() - started
    if summary:
        rate = done / max(seconds, 1e-9)
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        say(f"  {description}: {done:,} {unit} in {seconds:.1f} s ({shown}/s)")


class _Terminal:
    """Bars and lines on standard error."""

    def __init__(self) -> None:
        # Bars of the running pieces of work, the innermost last; None for one without a bar.
        self._bars: list[Progress | None] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "begin":
            # Only one bar at a time: it is drawn on the terminal's last line.
            draws = is_shown() and console().is_terminal and not any(self._bars)
            self._bars.append(self._begun(event) if draws else None)
        elif event.kind == "advance" and self._bars and (bar := self._bars[-1]) is not None:
            bar.update(bar.task_ids[0], completed=event.done)
        elif event.kind == "end" and self._bars and (bar := self._bars.pop()) is not None:
            bar.stop()
        elif event.kind in ("line", "note") and is_shown():
            text = f"  note: {event.text}" if event.kind == "note" else event.text
            console().print(text, style=event.style, soft_wrap=True)

    def _begun(self, event: Event) -> "Progress":
        from rich import progress as rich

        columns = (
            rich.TextColumn("  {task.description}", markup=False),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn(event.unit, markup=False),
            rich.TimeElapsedColumn(),
            rich.TextColumn("left"),
            rich.TimeRemainingColumn(),
        )
        bar = rich.Progress(*columns, console=console(), transient=True)
        bar.add_task(printable(event.text), total=event.total)
        bar.start()
        return bar


def _logged(event: Event) -> None:
    if event.kind in ("line", "note"):
        _log.log(logging.WARNING if event.kind == "note" else logging.INFO, "%s", printable(event.text.strip()))
    elif event.kind == "values":
        _log.debug("%s", printable(str(dict(event.values))))


_terminal = _Terminal()
_listeners: list[Listener] = []


@cache
def console() -> "Console":
    """The console for progress; created late because importing rich takes time."""
    return make_console(stderr=True)


def _on_a_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:
        # Standard error is closed.
        return False
