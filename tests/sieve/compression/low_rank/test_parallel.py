"""Matrices side by side: the same bits whatever the number of threads, and errors at once."""

import threading
import time

import pytest
import torch

import sieve
from sieve.calibration.collect import collect
from sieve.calibration.text import Sample, batches
from sieve.compression.low_rank.parallel import each
from tests.tiny_models import tiny_model, tiny_tokenizer, tiny_tokens


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("parallel", [True, False])
def test_in_order_and_without_gradients(two_threads, parallel):
    weight = torch.ones(3, requires_grad=True)
    found = list(each(lambda i: (i, (weight * i).requires_grad, torch.get_num_threads()), range(20), parallel))
    assert found == [(i, False, 1 if parallel else 2) for i in range(20)]
    assert torch.get_num_threads() == 2


def test_two_at_a_time(two_threads):
    """Each waits for the other: one after another they would wait in vain."""
    meeting = threading.Barrier(2, timeout=20)
    assert len(list(each(lambda i: meeting.wait(), range(4)))) == 4


def test_an_error_ends_the_work(two_threads):
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 1:
            raise ValueError("one")
        time.sleep(0.001)  # else all may be done before the caller has looked
        return i

    with pytest.raises(ValueError, match="one"):
        list(each(work, range(10_000)))
    assert len(begun) < 10_000
    assert torch.get_num_threads() == 2


def test_factors_do_not_depend_on_threads(two_threads):
    model = tiny_model("gpt2")
    statistics = collect(model, batches([Sample(ids, 1) for ids in tiny_tokens(8, 24).tolist()], 512))
    two = sieve.project(model, statistics)
    torch.set_num_threads(1)
    one = sieve.project(model, statistics)
    assert all(torch.equal(one[name].A, two[name].A) and torch.equal(one[name].B, two[name].B) for name in one)


@pytest.mark.parametrize("method", ["output_aligned", "loss_aware", "widths"])
def test_statistics_that_are_released_give_the_same_factors(two_threads, method):
    """What several matrices share stays until the last of them is done, in whatever order threads come to them."""
    model = tiny_model("llama")
    statistics = sieve.calibrate(model, tiny_tokenizer(), "geography", 2000, method)
    wanted = sieve.project(model, statistics, method)
    assert statistics.grams
    found = sieve.project(model, statistics, method, release=True)
    assert not statistics.grams
    for name, pair in wanted.items():
        assert torch.equal(found[name].A, pair.A)
        assert torch.equal(found[name].B, pair.B)
