"""The order of a generation: every candidate once, nothing used that is not stored, as few blocks as the tree has."""

import itertools

import numpy as np
import pytest

from sieve.searchers.engine.prefix_tree import schedule


def drawn(number, blocks=6, values=3, seed=0):
    draw = np.random.default_rng(seed)
    return list({tuple(map(int, draw.integers(values, size=blocks))) for _ in range(number)})


def carried_out(keys, most):
    """Blocks that run, checking that each step finds the very states that it needs."""
    stored: dict[int, tuple] = {}
    ran = 0
    seen = []
    for step in schedule(keys, most):
        key = keys[step.index]
        if step.start:
            assert stored[step.start] == key[: step.start]
        for block in step.keep:
            assert block > step.start
            stored[block] = key[:block]
        for block in step.drop:
            del stored[block]
        assert len(stored) <= most
        ran += len(key) - step.start
        seen.append(step.index)
    assert sorted(seen) == list(range(len(keys)))
    assert not stored
    return ran


def edges(keys):
    return len({key[: block + 1] for key in keys for block in range(len(key))})


@pytest.mark.parametrize("seed", range(5))
def test_runs_every_edge_of_the_tree_once(seed):
    keys = drawn(40, seed=seed)
    assert carried_out(keys, 6) == edges(keys)


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_with_little_room(most):
    keys = drawn(40)
    ran = carried_out(keys, most)
    assert edges(keys) <= ran <= sum(map(len, keys))
    if most == 0:
        assert ran == sum(map(len, keys))
    else:
        assert ran < sum(map(len, keys))


def test_starts_from_what_is_known_elsewhere():
    keys = drawn(40)
    known = [0] * len(keys)
    known[3] = 5
    steps = {step.index: step for step in schedule(keys, 6, known)}
    assert steps[3].start == 5
    assert all(block > 5 for block in steps[3].keep)
    none = schedule(keys, 6)
    assert sum(step.start for step in steps.values()) >= sum(step.start for step in none)
    everything = schedule(keys, 6, [5] * len(keys))
    assert all((step.start, step.keep) == (5, ()) for step in everything)


def test_keys_of_any_hashable():
    keys = [((8, "dense"), (4,)), ((8, "dense"), ("dense",)), (("dense", 8), (4,))]
    assert carried_out(keys, 2) == edges(keys) == 5


def test_every_small_set():
    every = list(itertools.product((0, 1), repeat=3))
    for number in (1, 2, 3):
        for keys in itertools.combinations(every, number):
            assert carried_out(list(keys), 3) == edges(keys)
