"""Who evaluates what: everything once, neighbours together, nobody idle while something waits."""

import random
from itertools import pairwise

import pytest

from sieve.searchers.engine.prefix_tree import common
from sieve.searchers.engine.work_stealing import Shares


def tree(number, seed=0, blocks=6):
    draw = random.Random(seed)
    keys = {tuple(draw.choice("ab") for _ in range(blocks)) for _ in range(number)}
    return sorted(keys, key=lambda key: draw.random())


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("number", [0, 1, 2, 7, 30])
def test_every_candidate_once_in_whatever_order_workers_ask(workers, number):
    keys = tree(number)
    shares, draw, found = Shares(keys, workers), random.Random(1), []
    places: dict[int, tuple[list[int], int]] = {}
    while True:
        worker = draw.randrange(workers)
        given = shares.next(worker)
        if given is None:
            break  # then nobody has anything that waits
        index, run = given
        places[worker] = (run, 0) if run is not None else (places[worker][0], places[worker][1] + 1)
        assert places[worker][0][places[worker][1]] == index  # the worker knows it by its place
        found.append(index)
    assert sorted(found) == list(range(len(keys)))
    assert all(shares.next(worker) is None for worker in range(workers))


def test_the_first_runs_are_neighbours_cut_where_they_share_least():
    keys = [("a", "a", "a"), ("a", "a", "b"), ("a", "a", "c"), ("b", "a", "a"), ("b", "a", "b")]
    shares = Shares(keys[::-1], 2)
    runs = [shares.next(worker)[1] for worker in range(2)]
    assert [[keys[::-1][index] for index in run] for run in runs] == [keys[:3], keys[3:]]


def test_shared_blocks_stay_within_a_worker():
    keys = tree(40)
    shares = Shares(keys, 3)
    runs = [shares.next(worker)[1] for worker in range(3)]
    assert sum(map(len, runs)) == len(keys)
    assert max(map(len, runs)) <= 2 * min(map(len, runs)) + 2
    lasts, firsts = [run[-1] for run in runs], [run[0] for run in runs]
    across = max(common(keys[one], keys[two]) for one, two in zip(lasts, firsts[1:], strict=False))
    within = [common(keys[one], keys[two]) for run in runs for one, two in pairwise(run)]
    assert across <= sum(within) / len(within)


def test_an_idle_worker_takes_half_of_the_longest_run():
    shares = Shares(tree(40), 2)
    (_, run), (_, other) = shares.next(0), shares.next(1)
    for _ in other[1:]:
        assert shares.next(1)[1] is None
    index, taken = shares.next(1)
    assert taken[0] == index
    assert set(taken) <= set(run[1:])
    assert 1 <= len(taken) < len(run) - 1


def test_what_a_lost_worker_had_goes_to_others():
    keys = tree(12)
    shares = Shares(keys, 2)
    (index, run), (other, _) = shares.next(0), shares.next(1)
    shares.lost(0, index)
    found = [other]
    while (given := shares.next(1)) is not None:
        found.append(given[0])
    assert sorted(found) == list(range(len(keys)))
    assert set(run) <= set(found)
