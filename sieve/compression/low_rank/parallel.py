"""Many small decompositions on a CPU: one thread each, as many at a time as there are threads."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

LARGEST = 4096
"""Rows or columns up to which matrices are solved side by side; more than one larger one would ask for much memory."""

T = TypeVar("T")
Item = TypeVar("Item")


def each(work: Callable[[Item], T], items: Iterable[Item], parallel: bool = True) -> Iterator[T]:
    """work(item) of every item, in their order, without gradients.

    Every item is worked on by one thread whatever the number of threads, so that results do not depend on it. With
    `parallel` off, one after another on all threads. An error ends the work that has not begun.
    """
    threads = torch.get_num_threads()
    if not parallel:
        with torch.no_grad():
            yield from map(work, items)
        return

    def alone(item: Item) -> T:
        with torch.no_grad():  # which, as the number of threads, is a thread's own
            return work(item)

    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        torch.set_num_threads(1)
        yield from pool.map(alone, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
