"""Which worker evaluates what: all candidates once, neighbours together, no worker idle while one waits."""

import random
from itertools import pairwise

import pytest

from sieve.searchers.engine.prefix_tree import common_prefix
from sieve.searchers.engine.work_stealing import CandidateQueue


def tree(number, seed=0, blocks=6):
    draw = random.Random(seed)
    keys = {tuple(draw.choice("ab") for _ in range(blocks)) for _ in range(number)}
    return sorted(keys, key=lambda key: draw.random())


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("number", [0, 1, 2, 7, 30])
def test_every_candidate_once_in_whatever_order_workers_ask(workers, number):
    keys = tree(number)
    queue, draw, found = CandidateQueue(keys, workers), random.Random(1), []
    places: dict[int, tuple[list[int], int]] = {}
    while True:
        worker = draw.randrange(workers)
        given = queue.next(worker)
        if given is None:
            break  # then nothing waits
        index, run = given
        places[worker] = (run, 0) if run is not None else (places[worker][0], places[worker][1] + 1)
        assert places[worker][0][places[worker][1]] == index  # the worker knows it by its place
        found.append(index)
    assert sorted(found) == list(range(len(keys)))
    assert all(queue.next(worker) is None for worker in range(workers))


def test_the_first_runs_are_neighbours_cut_where_they_share_least():
    keys = [("a", "a", "a"), ("a", "a", "b"), ("a", "a", "c"), ("b", "a", "a"), ("b", "a", "b")]
    queue = CandidateQueue(keys[::-1], 2)
    runs = [queue.next(worker)[1] for worker in range(2)]
    assert [[keys[::-1][index] for index in run] for run in runs] == [keys[:3], keys[3:]]


def test_shared_blocks_stay_within_a_worker():
    keys = tree(40)
    queue = CandidateQueue(keys, 3)
    runs = [queue.next(worker)[1] for worker in range(3)]
    assert sum(map(len, runs)) == len(keys)
    assert max(map(len, runs)) <= 2 * min(map(len, runs)) + 2
    lasts, firsts = [run[-1] for run in runs], [run[0] for run in runs]
    across = max(common_prefix(keys[one], keys[two]) for one, two in zip(lasts, firsts[1:], strict=False))
    within = [common_prefix(keys[one], keys[two]) for run in runs for one, two in pairwise(run)]
    assert across <= sum(within) / len(within)


def test_an_idle_worker_takes_half_of_the_longest_run():
    queue = CandidateQueue(tree(40), 2)
    (_, run), (_, other) = queue.next(0), queue.next(1)
    for _ in other[1:]:
        assert queue.next(1)[1] is None
    index, taken = queue.next(1)
    assert taken[0] == index
    assert set(taken) <= set(run[1:])
    assert 1 <= len(taken) < len(run) - 1


def test_what_a_lost_worker_had_goes_to_others():
    keys = tree(12)
    queue = CandidateQueue(keys, 2)
    (index, run), (other, _) = queue.next(0), queue.next(1)
    queue.give_back(0, index)
    found = [other]
    while (given := queue.next(1)) is not None:
        found.append(given[0])
    assert sorted(found) == list(range(len(keys)))
    assert set(run) <= set(found)
