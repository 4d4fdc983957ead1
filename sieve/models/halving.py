"""Passes that do not fit into memory run in two halves, and these, if need be, in halves of their own.

Rows of a pass do not depend on one another, so that a half computes what the whole would, padded as the whole is: the
results agree up to rounding, and to the bit where a device's products do not depend on their number of rows. What did
not fit once is not tried again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

from sieve.errors import DeviceError
from sieve.utils import progress
from sieve.utils.devices import free_cached_memory, is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")


class Rows(NamedTuple):
    """Which rows of a pass run: `first` … `end` - 1 of `total`."""

    first: int
    end: int
    total: int


class Watcher(Protocol):
    """Keeps books of passes, and forgets what a pass did that broke off."""

    def mark(self) -> Any: ...

    def rewind(self, mark: Any) -> None: ...


_rows: ContextVar[Rows | None] = ContextVar("rows", default=None)
_watchers: list[Watcher] = []
# Model → kind of pass → the fewest cells that did not fit.
_limits: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()


def rows_of_pass() -> Rows | None:
    """The rows of the pass that is under way, which come in order; None outside of `in_halves`."""
    return _rows.get()


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Inside the block the watcher is told to forget passes that break off."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def indivisible(what: str) -> Iterator[None]:
    """Around work that cannot be begun again, as it may have been done in part: a lack of memory in it is final.

    Raises: DeviceError that names `what` had to be written.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"there is not enough memory to add to {what}: free some on the device, or use --dtype bfloat16"
        ) from error


def in_halves(
    model: nn.Module,
    rows: int,
    cells: int,
    run: Callable[[int, int], T],
    join: Callable[[T, T], T],
    kind: str = "scoring",
) -> T:
    """`run(0, rows)`, or where memory does not suffice the results of its halves, joined.

    Args:
        cells: of one row, in tokens; passes of as many cells as one that did not fit are halved at once.
        run: (first, end) → the result of these rows. Where it breaks off it must have changed nothing.
        kind: of pass; passes of one kind need the same memory for as many cells.

    Raises: what `run` raises, also the lack of memory for a single row.
    """
    limits = _limits.setdefault(model, {})

    def part(first: int, end: int) -> T:
        size = (end - first) * cells
        if end - first < 2 or size < limits.get(kind, math.inf):
            found = attempt(lambda: run(first, end), model.device, end - first > 1, Rows(first, end, rows))
            if found is not None:
                return found[0]
            limits[kind] = size
        middle = (first + end + 1) // 2
        return join(part(first, middle), part(middle, end))

    return part(0, rows)


def attempt(
    run: Callable[[], T], device: torch.device, divisible: bool = True, rows: Rows | None = None
) -> tuple[T] | None:
    """(What `run` gives,), or None where memory does not suffice; then all is as it was before, and the user is told.

    divisible: whether there are halves to go on with; if not, the lack of memory is raised.
    """
    marks = [(watcher, watcher.mark()) for watcher in _watchers]
    token = _rows.set(rows)
    try:
        return (run(),)
    except (RuntimeError, MemoryError) as error:
        if not (divisible and is_out_of_memory(error)):
            raise
    finally:
        _rows.reset(token)
    # Only now, as the error of the clause above holds the tensors of the pass.
    for watcher, mark in marks:
        watcher.rewind(mark)
    free_cached_memory(device)
    progress.note_once(
        "there is not enough memory for whole passes: they run in halves; results agree up to rounding",
        always=True,
    )
    return None
