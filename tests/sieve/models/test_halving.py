"""Passes for which there is not enough memory: halves of them give what the whole gives."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from sieve.models import halving
from sieve.models.halving import in_halves, rows_of_pass
from sieve.utils import progress


@contextmanager
def small_memory(module: nn.Module, cells: int, error: type[Exception] = torch.OutOfMemoryError):
    """Inside the block calls of the module with more than so many rows × tokens find no memory; yields their number.

    Not the model's first layer, so that a pass breaks off in its middle.
    """
    found = []

    def refuse(module: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[:-1].numel() > cells:
            found.append(hidden.shape[:-1])
            raise error("no memory")

    handle = module.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
        # What did not fit is not forgotten, and tests share models.
        halving._limits.clear()


@contextmanager
def small_memory_backward(module: nn.Module, cells: int):
    """`small_memory` of the backward pass, which comes to the module with so many rows × tokens."""
    found = []

    def refuse(gradient: torch.Tensor) -> None:
        if gradient.shape[:-1].numel() > cells:
            found.append(gradient.shape[:-1])
            raise torch.OutOfMemoryError("no memory")

    def watch(module: nn.Module, args: tuple, output) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(refuse)

    handle = module.register_forward_hook(watch)
    try:
        yield found
    finally:
        handle.remove()
        halving._limits.clear()


class Sums:
    """A pass that adds up its rows, of which so many fit; a watcher that counts what was begun."""

    def __init__(self, rows, fit):
        self.rows, self.fit, self.ran = rows, fit, []

    def __call__(self, first, end):
        assert rows_of_pass() == (first, end, len(self.rows))
        if end - first > self.fit:
            raise torch.OutOfMemoryError("no memory")
        self.ran.append((first, end))
        return self.rows[first:end]


@pytest.mark.parametrize(("fit", "ran"), [(7, 1), (6, 2), (3, 3), (1, 7)])
def test_parts_come_in_order_and_are_joined(fit, ran):
    sums = Sums(list(range(7)), fit)
    assert in_halves(_Model(), 7, 1, sums, list.__add__) == list(range(7))
    assert len(sums.ran) == ran
    assert rows_of_pass() is None


class _Model(nn.Module):
    device = torch.device("cpu")


def test_what_did_not_fit_is_not_tried_again():
    model, tried = _Model(), []

    def run(first, end):
        tried.append(end - first)
        if end - first > 2:
            raise torch.OutOfMemoryError("no memory")
        return end - first

    for _ in range(2):
        assert in_halves(model, 8, 10, run, int.__add__) == 8
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    # Fewer cells a row: more rows may fit. Another kind of pass knows nothing of these.
    tried.clear()
    in_halves(model, 3, 10, run, int.__add__)
    assert tried == [3, 2, 1]
    tried.clear()
    in_halves(model, 4, 5, run, int.__add__, "writing")
    assert tried[0] == 4


def test_one_row_and_other_errors_are_raised():
    def run(first, end):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_halves(_Model(), 4, 1, run, int.__add__)

    def broken(first, end):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_halves(_Model(), 4, 1, broken, int.__add__)


def test_the_user_is_told_once_even_where_progress_is_muted(monkeypatch):
    monkeypatch.setattr(progress, "_noted", set())
    events = []
    with progress.listening(events.append), progress.shown(), progress.muted():
        for _ in range(2):
            in_halves(_Model(), 7, 1, Sums(list(range(7)), 3), list.__add__)
    assert [event.kind for event in events] == ["note"]
    assert "halves" in events[0].text
