"""Parameters of which every two values meet in some test, instead of all combinations: most faults need no more."""

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest

_INDIRECT = ("implementation",)


def pairwise(**parameters: Iterable[Any]) -> pytest.MarkDecorator:
    """A `parametrize` whose tests hold every pair of values of two parameters. A name such as `n_and_m` with tuples as
    values stands for the parameters n and m, which go together.

    Example:
        >>> @pairwise(dtype=[torch.float32, torch.bfloat16], rows=[1, 7, 40], n_and_m=[(5, 3), (64, 64)])
        ... def test(dtype, rows, n, m): ...
    """
    values = [list(given) for given in parameters.values()]
    names = [name.split("_and_") for name in parameters]
    rows = []
    for indices in covering([len(given) for given in values]):
        chosen = [given[index] for given, index in zip(values, indices, strict=True)]
        rows.append(
            tuple(
                part for one, value in zip(names, chosen, strict=True) for part in (value if len(one) > 1 else [value])
            )
        )
    flat = [name for one in names for name in one]
    return pytest.mark.parametrize(flat, rows, indirect=[name for name in flat if name in _INDIRECT])


def covering(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Rows of indices, one below each size, in which all pairs of two columns' indices occur; few, by greedy choice."""
    if len(sizes) == 1:
        return [(index,) for index in range(sizes[0])]
    open_pairs = {
        ((i, a), (j, b))
        for i, j in combinations(range(len(sizes)), 2)
        for a, b in product(range(sizes[i]), range(sizes[j]))
    }
    rows = []
    while open_pairs:
        # Begin with a pair that no row has, and let every other column add as many open pairs as it can.
        row = dict(min(open_pairs))
        for column in range(len(sizes)):
            if column not in row:
                row[column] = max(
                    range(sizes[column]),
                    key=lambda value, column=column: (
                        sum(_pair((column, value), other) in open_pairs for other in row.items()), -value
                    ),
                )  # fmt: skip
        open_pairs -= {_pair(one, other) for one, other in combinations(row.items(), 2)}
        rows.append(tuple(row[column] for column in range(len(sizes))))
    return rows


def _pair(one: tuple[int, int], other: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (one, other) if one < other else (other, one)
