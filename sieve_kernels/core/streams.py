"""Independent pieces of work on parallel streams, so that products too small to fill a GPU share it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")

ROWS_WHEN_EAGER = 4096
"""Fewest rows for which calls outside of graphs take more GPU time than host time: forking and joining streams costs
the host as much as two launches. 2,048 rows of an 8B model took as long to enqueue as to compute."""

_sides: dict[tuple[int, int], list[torch.cuda.Stream]] = {}
"""Side streams of a device's stream. Each belongs to one main stream, so waiting for the main stream covers all earlier
work."""


def overlaps(rows: int, device: torch.device) -> bool:
    """Whether pieces of work with so many rows run in parallel."""
    return device.type == "cuda" and (rows >= ROWS_WHEN_EAGER or torch.cuda.is_current_stream_capturing())


def either(make: Callable[[bool], Callable], count: int, rows: int, device: torch.device) -> Callable:
    """A function that calls make(True)'s result where `count` pieces of so many rows overlap, else make(False)'s."""
    alone = make(False)
    if count < 2:
        return alone
    beside = make(True)
    return lambda *arguments: (beside if overlaps(rows, device) else alone)(*arguments)


def side_by_side(works: Sequence[Callable[[], Result]], rows: int, device: torch.device) -> list[Result]:
    """Run independent `works` of so many rows; returns their results. The current stream then waits for all of them.

    Works that overlap must write into tensors made before, on the current stream, and return those. Tensors that they
    make themselves must not be returned: their stream may reuse that memory.
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
