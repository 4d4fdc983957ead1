"""Layers that share a GPU: what runs beside the current stream begins behind what went before, ends before the rest."""

from contextlib import contextmanager

import pytest
import torch

from sieve_kernels import lowrank_linear_group, lowrank_mlp
from sieve_kernels.core import streams
from sieve_kernels.lowrank import reference
from sieve_kernels.mlp import reference as glu


class Gpu:
    """Streams that note what happens, in the order in which the host asks for it."""

    def __init__(self):
        self.log = []
        self.current = self.stream("main")

    def stream(self, name):
        gpu = self

        class Stream:
            device_index, cuda_stream = 0, name

            def record_event(self):
                gpu.log.append((name, "records"))
                return name

            def wait_event(self, event):
                gpu.log.append((name, f"waits for {event}"))

            def wait_stream(self, other):
                gpu.log.append((name, f"waits for {other.cuda_stream}"))

        return Stream()

    @contextmanager
    def use(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def work(self, name):
        return lambda: self.log.append((self.current.cuda_stream, name)) or name


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu()
    monkeypatch.setattr(streams, "_sides", {})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.current)
    monkeypatch.setattr(torch.cuda, "stream", made.use)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    names = iter(("one", "two"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.stream(next(names)))
    return made


def test_order_of_events(gpu):
    for _ in range(2):  # the second time on the same streams
        works = [gpu.work(name) for name in "abc"]
        found = streams.side_by_side(works, streams.ROWS_WHEN_EAGER, torch.device("cuda", 0))
        assert found == ["a", "b", "c"]
        begun, ended = gpu.log.index(("main", "records")), gpu.log.index(("main", "waits for one"))
        assert gpu.log[begun:ended] == [
            ("main", "records"),
            ("one", "waits for main"),
            ("one", "b"),
            ("two", "waits for main"),
            ("two", "c"),
            ("main", "a"),
        ]
        assert gpu.log[ended:] == [("main", "waits for one"), ("main", "waits for two")]
        gpu.log.clear()


def test_few_rows_outside_of_a_graph_stay_on_one_stream(gpu, monkeypatch):
    works = [gpu.work(name) for name in "ab"]
    streams.side_by_side(works, streams.ROWS_WHEN_EAGER - 1, torch.device("cuda", 0))
    streams.side_by_side(works, 10**6, torch.device("cpu"))
    assert gpu.log == [("main", "a"), ("main", "b")] * 2
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    streams.side_by_side(works, 1, torch.device("cuda", 0))
    assert ("one", "b") in gpu.log


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a graph")
@pytest.mark.parametrize("rows", [100, 3000])
@torch.no_grad()
def test_in_a_graph(rows):
    """Layers one after the other, so that memory is used again, replayed with other inputs."""
    factors = [torch.randn(s, device="cuda") / s[1] ** 0.5 for s in ((32, 64), (96, 32)) * 3]
    As, Bs, order = factors[::2], factors[1::2], torch.randperm(128, device="cuda")
    x = torch.randn(rows, 64, device="cuda")

    def chain(x, group, mlp):
        for _ in range(4):
            q, k, v = group(x, As, Bs)
            x = mlp((q + k * v)[:, :64].tanh(), [(As[0], Bs[0], order), (As[1], Bs[1], order)])
        return x

    def ours(x):
        return chain(x, lowrank_linear_group, lambda h, inner: lowrank_mlp(h, *inner, (down,)))

    def definition(x):
        return chain(x, reference.group, lambda h, inner: glu.mlp(h, [*inner, (down,)]))

    down = torch.randn(64, 128, device="cuda") / 12
    ours(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ours(x)
    for _ in range(3):
        x.normal_()
        graph.replay()
        torch.testing.assert_close(found, definition(x), rtol=1e-3, atol=1e-3)
