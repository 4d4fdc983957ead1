"""Evaluations on a local Ray cluster: the same bits for any number of workers, whatever happens to them."""

import logging
import os
import signal
import socket
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sieve.compression.low_rank.methods import LOW_RANK
from sieve.errors import InputError, NumericsError, WorkerError
from sieve.evaluation.scoring import Prepared, Scores
from sieve.models.linears import prunable
from sieve.searchers.algorithms.base import searcher_named
from sieve.searchers.config import Options
from sieve.searchers.engine import ray_workers
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.engine.engine import Engine
from sieve.searchers.engine.journal import Journal
from sieve.searchers.engine.ray_workers import WorkerPool, require_workers
from sieve.searchers.run import run_search
from sieve.utils import progress
from tests.sieve.searchers.engine.test_engine import drawn_plans, engine_of, svd_factors
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 - fixtures
from tests.tiny_models import tiny_model, tiny_tokenizer

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def ray_session():
    """Room for three workers, with the settings of this process."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        "local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=100 << 20,
    )  # fmt: skip
    yield []
    ray.shutdown()


@pytest.fixture
def cluster(ray_session, monkeypatch):
    """Workers that are killed serve the next test: to start one takes seconds, all for its imports."""

    def spawn(self):
        while ray_session:
            actor = ray_session.pop()
            try:
                ray.get(actor.__ray_ready__.remote())
                return actor
            except ray.exceptions.RayError:  # it was killed
                continue
        return self._actor.remote()

    monkeypatch.setattr(WorkerPool, "_spawn", spawn)
    monkeypatch.setattr(WorkerPool, "_kill", lambda self, actor: ray_session.append(actor))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(ray_workers.THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("cluster", "one_thread")
def test_same_bits_as_in_this_process_for_any_number_of_workers(tmp_path):
    model = tiny_model("llama")
    plans = drawn_plans(model, 12)
    with engine_of(model) as engine:
        want = [engine.scores(plans, rung) for rung in range(2)]
        nominal = engine.nominal
    for number in (1, 3):
        path = tmp_path / f"journal {number}"
        with Journal(path, {}) as journal, engine_of(model, workers=number, journal=journal) as engine:
            got = [engine.scores(plans[:7], 0)]
            engine.retain(plans[:3])
            got = [engine.scores(plans, rung) for rung in range(2)]
            assert len(journal.records) == 2 * len({str(plan) for plan in plans})
            assert engine.cost.layers > 0
            assert 0 < engine.peak_bytes <= 2 << 30
            assert engine.cost.spent < engine.cost.plain_layer_tokens
        for one, two in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
            assert np.array_equal(one.loglik, two.loglik)
            assert np.array_equal(one.score, two.score)
    assert nominal > 0


@pytest.fixture(scope="module")
def small(world):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    return SimpleNamespace(model=model, tokenizer=tokenizer, task=world.task, factors=svd_factors(model))


def searched(small, searcher="ga", **options):
    quick = {"generations": 2, "population": 4, "offspring": 6, "rank_multiple": 4, "bottlenecks": 3}
    return run_search(small.model, small.tokenizer, small.factors, small.task, 0.4, searcher, **quick | options)


def outcome(result):
    scores = [(candidate.plan, candidate.scores.loglik.tolist()) for candidate in result.evaluated]
    return result.plan, scores, result.bottlenecks, result.validation_attempts, result.rank_correlation


@pytest.mark.usefixtures("cluster", "one_thread")
def test_same_winner_for_any_number_of_workers_though_some_are_killed(small, tmp_path):
    """Bit for bit: every score of every candidate, and what followed from them."""
    alone = searched(small)
    for number in (1, 3):
        journal, killed = tmp_path / f"journal {number}", []
        stop = threading.Event()
        killer = threading.Thread(target=kill_workers, args=(journal, killed, stop))
        if number > 1:
            killer.start()
        result = searched(small, workers=number, journal=journal)
        stop.set()
        assert outcome(result) == outcome(alone)
        if number > 1:
            killer.join()
            assert killed
        keys = [line.split(b'"')[3] for line in journal.read_bytes().splitlines()[1:]]
        assert len(set(keys)) == len(keys)
        assert result.cost["candidates"] == alone.cost["candidates"]
        assert result.cost["layer_tokens_plain"] == alone.cost["layer_tokens_plain"]
    # Another number may go on where one stopped, and finds everything done.
    assert outcome(searched(small, workers=2, journal=tmp_path / "journal 1")) == outcome(alone)
    with pytest.raises(InputError, match="changed since are recipe"):
        searched(small, journal=tmp_path / "journal 1")


def kill_workers(journal, killed, stop):
    """Kill one worker after ten lines of the journal: one that is at work, if that shows."""
    while not stop.is_set() and not killed:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 10:
            workers = [(pid, name) for pid, name in worker_processes() if name.startswith(b"ray::HeartbeatWorker")]
            workers.sort(key=lambda worker: not worker[1].startswith(b"ray::HeartbeatWorker.evaluate"))
            if workers:
                os.kill(workers[0][0], signal.SIGKILL)
                killed.append(workers[0][0])
        time.sleep(0.005)


def worker_processes():
    """Processes of this test's cluster that are workers at the moment, and what they do, by which Ray names them."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as command, open(f"/proc/{pid}/status") as status:
                parent = int(next(line for line in status if line.startswith("PPid")).split()[1])
                name = command.read()
                if name.startswith(b"ray::HeartbeatWorker") and ours(parent):
                    found.append((int(pid), name))
        except (OSError, StopIteration):  # it has ended
            continue
    return sorted(found)


def ours(pid):
    while pid > 1:
        if pid == os.getpid():
            return True
        with open(f"/proc/{pid}/status") as status:
            pid = int(next(line for line in status if line.startswith("PPid")).split()[1])
    return False


def acting(model, act, workers):
    """An engine whose evaluations do something, given up_proj's rank, which is the score."""

    def evaluate(model):
        rank = model.model.layers[1].mlp.up_proj.rank or 0
        act(rank)
        return Scores(np.full(4, float(rank)), np.full(4, -float(rank)), 4)

    rungs = [Prepared(evaluate, 4, 4, fixed_passes=False)] * 2
    stack, matrices = ExitStack(), prunable(model)
    elastic = stack.enter_context(svd_factors(model).elastic(model))
    engine = Engine(model, elastic, matrices, rungs, EngineConfig(workers=workers))
    stack.enter_context(engine.running())
    return stack, engine


def plans_of(ranks):
    return [{"model.layers.1.mlp.up_proj": rank} for rank in ranks]


@pytest.mark.usefixtures("cluster")
def test_what_a_worker_raises_is_raised_here():
    def act(rank):
        if rank == 2:
            raise NumericsError("not finite: it begins in layer 7")

    stack, engine = acting(tiny_model("llama"), act, 2)
    with stack, pytest.raises(NumericsError, match=r"^not finite: it begins in layer 7$"):
        engine.scores(plans_of([1, 2]), 0)


@pytest.mark.usefixtures("cluster")
def test_no_worker_is_idle_while_candidates_wait(tmp_path):
    """One candidate takes as long as all others together: the others do not wait for it."""
    log = tmp_path / "log"

    def act(rank):
        time.sleep(2 if rank == 1 else 0.1)
        with open(log, "a") as file:
            file.write(f"{rank} {os.getpid()} {time.time()}\n")

    stack, engine = acting(tiny_model("llama"), act, 2)
    with stack:
        engine.scores(plans_of([30, 31]), 1)  # both are there
        log.unlink()
        engine.scores(plans_of(range(1, 13)), 0)
    rows = [line.split() for line in log.read_text().splitlines()]
    slow = next(row for row in rows if row[0] == "1")
    others = [row for row in rows if row[1] != slow[1]]
    assert len(others) >= 10
    assert rows[-1] == slow


def test_bad_numbers_and_addresses():
    for workers in (0, -1, 1.5, "two", "http://here", ""):
        with pytest.raises(InputError, match="--workers must be"):
            EngineConfig(workers=workers).check()
    with pytest.raises(InputError, match="one candidate after the other"):
        searcher_named("uniform").check(Options(), EngineConfig(workers=2), LOW_RANK)


def test_an_address_without_an_answer_is_found_out_at_once(small):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        address = f"ray://127.0.0.1:{taken.getsockname()[1]}"
        started = time.perf_counter()
        with pytest.raises(InputError, match="no Ray cluster answers at ray://127"):
            searched(small, workers=address)
        assert time.perf_counter() - started < 5
    with pytest.raises(InputError, match="no Ray cluster answers"):
        require_workers("ray://no-such-host.invalid:10001")
    with pytest.raises(InputError, match="no Ray cluster answers"):
        require_workers("ray://127.0.0.1:port")


def test_without_ray_the_extra_is_named(small, monkeypatch):
    monkeypatch.setattr(ray_workers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "ray\[client\]"'):
        searched(small, workers=2)


@pytest.mark.usefixtures("cluster")
def test_the_command_line(run, world, tmp_path):  # noqa: F811
    quick = ("--search", "ga", "--generations", 1, "--population", 4, "--offspring", 6, "--bottlenecks", 0)
    given = (*options(world, tmp_path / "out", tolerance=0.4), *quick)
    code, _, err = run(*given, "--workers", "ray://127.0.0.1:1")
    assert code == 2
    assert "no Ray cluster answers at ray://127.0.0.1:1" in err
    assert "load" not in err.split("answers")[0]  # found out before anything else
    assert not list(tmp_path.glob("out*"))
    assert run(*given, "--workers", 0)[0] == 2
    code, _, err = run(*given, "--workers", 2)
    assert code == 0, err
    assert "starting 2 workers" in err
    assert "workers: 2" in (tmp_path / "out" / "recipe.yaml").read_text().replace('"', "")


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_at_a_candidate_costs_that_one_evaluation(tmp_path):
    """It kills itself the first time that it comes to rank 5, and leaves word."""
    deaths, log = tmp_path / "deaths", tmp_path / "log"

    def act(rank):
        with open(log, "a") as file:
            file.write(f"{rank}\n")
        if rank == 5 and not deaths.exists():
            deaths.write_text("once")
            os.kill(os.getpid(), signal.SIGKILL)

    stack, engine = acting(tiny_model("llama"), act, 2)
    with stack:
        scores = engine.scores(plans_of(range(1, 11)), 0)
    assert [one.accuracy for one in scores] == list(range(1, 11))
    assert deaths.exists()
    assert sorted(map(int, log.read_text().split())) == sorted([*range(1, 11), 5])


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("error", [torch.AcceleratorError, torch.OutOfMemoryError])
def test_a_worker_whose_device_fails_is_lost(tmp_path, error):
    failures, log = tmp_path / "failures", tmp_path / "log"

    def act(rank):
        with open(log, "a") as file:
            file.write(f"{rank}\n")
        if rank == 5 and not failures.exists():
            failures.write_text("once")
            raise error("CUDA error: unspecified launch failure")

    stack, engine = acting(tiny_model("llama"), act, 2)
    with stack:
        scores = engine.scores(plans_of(range(1, 11)), 0)
    assert [one.accuracy for one in scores] == list(range(1, 11))
    assert sorted(map(int, log.read_text().split())) == sorted([*range(1, 11), 5])


@pytest.mark.usefixtures("cluster")
def test_a_candidate_that_kills_every_worker_ends_the_search(monkeypatch):
    monkeypatch.setattr(ray_workers, "MAX_LOSSES", 2)
    stack, engine = acting(tiny_model("llama"), lambda rank: rank == 3 and os.kill(os.getpid(), signal.SIGKILL), 2)
    with stack, pytest.raises(WorkerError, match=r"lost 2 times.*--resume"):
        engine.scores(plans_of(range(1, 6)), 0)


@pytest.fixture
def room(ray_session, monkeypatch):
    """The cluster without workers of other tests; short times."""
    while ray_session:
        ray.kill(ray_session.pop())
    monkeypatch.setattr(ray_workers, "TICK", 0.2)
    monkeypatch.setattr(ray_workers, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(ray_workers, "SILENT_SECONDS", 3.0)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("how", ["stopped", pytest.param("hanging", marks=pytest.mark.slow)])
def test_a_worker_that_is_stopped_or_hangs_loses_its_candidate_to_another(tmp_path, monkeypatch, capsys, how):
    """Ray notices neither. The search goes on, with the same scores, and says so once."""
    once = tmp_path / "once"
    if how == "hanging":
        monkeypatch.setattr(ray_workers, "HANGING_SECONDS", 3.0)

    def act(rank):
        time.sleep(0.05)
        if rank == 5 and not once.exists():
            once.write_text(str(os.getpid()))
            if how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)

    stack, engine = acting(tiny_model("llama"), act, 2)
    with progress.shown(), stack:
        engine.scores(plans_of([20, 21]), 1)
        scores = engine.scores(plans_of(range(1, 11)), 0)
        assert [one.accuracy for one in scores] == list(range(1, 11))
        for _ in range(200):  # Ray takes five seconds over it
            if not os.path.exists(f"/proc/{once.read_text()}"):
                break
            time.sleep(0.1)
        else:
            pytest.fail("the worker that was given up is still there")
    assert capsys.readouterr().err.count("a worker was lost") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("room")
def test_slow_evaluations_and_a_driver_that_was_stopped_lose_no_worker(monkeypatch, capsys):
    """An evaluation may take longer than a worker may be silent; a driver that could not listen blames no worker."""
    monkeypatch.setattr(ray_workers, "SILENT_SECONDS", 1.5)
    now, jumps = time.monotonic, iter([0, 0, 0, 1000, 1000, 5000])
    monkeypatch.setattr(ray_workers.time, "monotonic", lambda: now() + next(jumps, 5000))
    stack, engine = acting(tiny_model("llama"), lambda rank: time.sleep(3), 2)
    with progress.shown(), stack:
        assert [one.accuracy for one in engine.scores(plans_of([1, 2]), 0)] == [1, 2]
    assert "lost" not in capsys.readouterr().err
