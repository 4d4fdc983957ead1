"""Pieces of work that need no results of one another, each on a stream: products too small to fill a GPU share it."""

from collections.abc import Callable, Sequence

import torch

ROWS_WHEN_EAGER = 1024
"""Fewest rows for which a GPU's time, and not the host's, is what calls outside of a graph take: forking and joining
streams costs the host as much as two launches."""

_sides: dict[tuple[int, int], list[torch.cuda.Stream]] = {}
"""Streams beside one of a device. Each belongs to one: what waits for this one has waited for all that went before."""


def side_by_side(works: Sequence[Callable[[], None]], rows: int, device: torch.device) -> None:
    """Call `works`, of which none needs another's results, for so many rows; the current stream goes on behind all.

    They write into tensors that were made before, on the current stream. What they make themselves must not leave them:
    its memory is their stream's to use again.
    """
    if device.type != "cuda" or not (rows >= ROWS_WHEN_EAGER or torch.cuda.is_current_stream_capturing()):
        for work in works:
            work()
        return
    first, *others = works
    main = torch.cuda.current_stream(device)
    sides = _sides.setdefault((main.device_index, main.cuda_stream), [])
    while len(sides) < len(others):
        sides.append(torch.cuda.Stream(device))
    begun = main.record_event()
    for work, side in zip(others, sides, strict=False):
        side.wait_event(begun)
        with torch.cuda.stream(side):
            work()
    first()
    for side in sides[: len(others)]:
        main.wait_stream(side)
