"""Pieces of work that need no results of one another, each on a stream: products too small to fill a GPU share it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")

ROWS_WHEN_EAGER = 4096
"""Fewest rows for which a GPU's time, and not the host's, is what calls outside of a graph take: forking and joining
streams costs the host as much as two launches. 2,048 rows of an 8B model took as long to enqueue as to compute."""

_sides: dict[tuple[int, int], list[torch.cuda.Stream]] = {}
"""Streams beside one of a device. Each belongs to one: what waits for this one has waited for all that went before."""


def overlaps(rows: int, device: torch.device) -> bool:
    """Whether pieces of work of so many rows are done beside one another."""
    return device.type == "cuda" and (rows >= ROWS_WHEN_EAGER or torch.cuda.is_current_stream_capturing())


def either(make: Callable[[bool], Callable], count: int, rows: int, device: torch.device) -> Callable:
    """A function that takes, call by call, make(False) or, where `count` pieces of so many rows overlap, make(True)."""
    alone = make(False)
    if count < 2:
        return alone
    beside = make(True)
    return lambda *arguments: (beside if overlaps(rows, device) else alone)(*arguments)


def side_by_side(works: Sequence[Callable[[], Result]], rows: int, device: torch.device) -> list[Result]:
    """What `works` return, of which none needs another's results, for so many rows; the current stream goes on behind
    all.

    Where they overlap they write into tensors that were made before, on the current stream, and return those. What they
    make themselves must not leave them: its memory is their stream's to use again.
    """
    if len(works) == 1 or not overlaps(rows, device):
        return [work() for work in works]
    first, *others = works
    main = torch.cuda.current_stream(device)
    sides = _sides.setdefault((main.device_index, main.cuda_stream), [])
    while len(sides) < len(others):
        sides.append(torch.cuda.Stream(device))
    begun, results = main.record_event(), []
    for work, side in zip(others, sides, strict=False):
        side.wait_event(begun)
        with torch.cuda.stream(side):
            results.append(work())
    results.insert(0, first())
    for side in sides[: len(others)]:
        main.wait_stream(side)
    return results
