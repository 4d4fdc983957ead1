"""Evaluations on Ray actors: `--workers 4` on this machine, `--workers ray://host:10001` on a cluster.

A worker is an `Evaluator` of its own in another process. The model goes to all of them as one object in Ray's store,
which the workers of one machine read without a copy. Candidates are sent one at a time, out of segments of neighbours
(`work_stealing`). Which worker has which candidate depends on timing and changes no bit of its scores: every evaluation
runs the same passes, on `THREADS` threads on any machine. What decides, the journal among it, stays in the driver.

A lost worker costs the candidate that it was evaluating, which another worker evaluates again. Lost is also a worker
whose device has failed, one without a heartbeat (it was stopped, or its machine is gone), and one that takes far longer
than all evaluations before.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from sieve.errors import InputError, WorkerError
from sieve.searchers.engine.config import check_workers
from sieve.searchers.engine.ray_cluster import alone_on_this_machine, own_signals
from sieve.searchers.engine.shared_memory import Packed, pack, unpack
from sieve.searchers.engine.work_stealing import CandidateQueue
from sieve.utils import progress
from sieve.utils.devices import device_failed

if TYPE_CHECKING:
    from sieve.evaluation.scoring import Scores
    from sieve.searchers.engine.cost import Spent
    from sieve.searchers.engine.local import CandidateBatch, Evaluator, Ranks, Result

THREADS = 1  # of each worker, for any number of them: how sums are rounded depends on how many threads share them
CONNECT_SECONDS = 5.0
START_SECONDS = 300.0
TICK = 1.0  # seconds after which we look whether workers live
HEARTBEAT_SECONDS = 5.0  # between a heartbeat and asking for the next
SILENT_SECONDS = 30.0  # without a heartbeat: the worker is stopped or gone
# An evaluation that takes so many times the slowest one so far, by token, and at least so many seconds, hangs.
HANGING, HANGING_SECONDS = 20.0, 300.0
MAX_LOSSES = 3  # of one candidate's workers, or in starting: more is no accident
_HEARTBEAT = "heartbeat"  # the group of actor methods that run during an evaluation
_PORT = 10001
_STORE = 128 << 20  # bytes of Ray's store on top of the model's


def require_workers(workers: int | str | None) -> None:
    """InputError unless there could be such workers: Ray installed, the address one that answers."""
    check_workers(workers)
    if workers is None:
        return
    if find_spec("ray") is None:
        raise InputError('--workers needs Ray, which is not installed; run: pip install "ray[client]"')
    if isinstance(workers, str):
        try:
            address = urlsplit(workers)
            socket.create_connection((address.hostname or "", address.port or _PORT), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Ray cluster answers at {workers} ({error}): check the address; on its first machine runs "
                "`ray start --head`"
            ) from error


class Worker:
    """What runs in an actor."""

    def load(self, packed: Packed) -> None:
        """Take in what there is to evaluate; first of all."""
        from sieve.searchers.engine.local import Evaluator

        torch.set_num_threads(THREADS)
        self._evaluator = Evaluator(*unpack(packed))
        self._open = ExitStack()
        self._open.enter_context(self._evaluator.running())

    def evaluate(
        self, segment: Sequence[CandidateBatch] | None, rung: int, alone: bool, place: int
    ) -> tuple[list[tuple[Scores, Spent]], int]:
        """Results of the batch at a place of the segment, and the most bytes that states took.

        Places come one after the other; `segment` is given with its first, else None.
        """
        with torch.inference_mode():
            if segment is not None:
                self._evaluator.begin(segment, rung, alone)
            return self._evaluator.step(place), self._evaluator.peak_bytes

    def retain(self, candidates: Sequence[Ranks]) -> None:
        self._evaluator.retain(candidates)

    def heartbeat(self) -> int:
        """A sign of life, from a thread of its own; the process's id."""
        return os.getpid()


def _actor_class() -> type[Worker]:
    """`Worker` whose `heartbeat` has a thread of its own.

    The decorator needs Ray, and a call over a `ray://` address cannot name a thread group. A class that is made here is
    sent along by Ray; one of this module would be imported on the other side, and lack the decorator.
    """
    import ray

    class HeartbeatWorker(Worker):
        @ray.method(concurrency_group=_HEARTBEAT)
        def heartbeat(self) -> int:
            return super().heartbeat()

    return HeartbeatWorker


class WorkerPool:
    """Evaluates candidates as `Evaluator` does, on actors. A context manager.

    Args:
        evaluator: what every worker gets a copy of; not running.
        workers: a number, or the address of a cluster, whose processors (GPUs, if the model is on one) are all used.

    Raises: InputError where no worker comes up; WorkerError where they are lost again and again.
    """

    def __init__(self, evaluator: Evaluator, workers: int | str):
        self._evaluator, self._workers = evaluator, workers
        self._gpu = evaluator.model.device.type == "cuda"
        self._slots: list[_WorkerSlot] = []
        self._failed_starts = 0  # in a row
        self._own = False  # whether the cluster is ours, and on this machine
        self._peaks: Counter[int] = Counter()
        self._slowest = 0.0  # seconds per token of a finished evaluation

    @property
    def peak_bytes(self) -> int:
        """The most that stored states took, of all workers together."""
        return sum(self._peaks.values())

    def __enter__(self) -> WorkerPool:
        import ray

        self._open = ExitStack()
        try:
            self._connect()
            number = self._workers if isinstance(self._workers, int) else self._capacity()

            # All workers get one object of Ray's store, and each its share of the memory for states.
            given = self._evaluator
            config = replace(given.config, layers=given.layers, memory=given.memory // number)
            contents = given.model, given.elastic, given.matrices, given.rungs, config
            self._packed = ray.put(pack((*contents, given.candidate_batch_size, given.recorder)))
            self._actor = ray.remote(
                num_cpus=THREADS, num_gpus=int(self._gpu), max_restarts=0, concurrency_groups={_HEARTBEAT: 1}
            )(_actor_class())
            self._slots = [_WorkerSlot(place, self._spawn(), self._packed) for place in range(number)]
            self._wait_for_first()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *exception) -> None:
        with self._open:
            for slot in self._slots:
                self._end(slot)

    def evaluate(self, candidates: Sequence[Ranks], rung: int, alone: bool = True) -> Iterator[Result]:
        """Results on a rung as they come. No two candidates are equal. `alone`: see `Evaluator.batches_of`."""
        import ray

        members = self._evaluator.batches_of(candidates, alone)
        batches = [[candidates[index] for index in batch] for batch in members]
        queue = CandidateQueue([self._evaluator.by_block(batch[0]) for batch in batches], len(self._slots))
        losses: Counter[int] = Counter()
        missing = len(batches)
        tokens = self._evaluator.rungs[rung].plain_tokens
        clock = _Clock()
        while missing:
            # Every idle worker gets its next batch.
            for slot in self._slots:
                if slot.idle and (found := queue.next(slot.number)) is not None:
                    index, segment = found
                    slot.send(index, None if segment is None else [batches[one] for one in segment], rung, alone)
            busy = [slot for slot in self._slots if slot.pending is not None]
            done, _ = ray.wait([slot.pending for slot in busy], timeout=TICK)
            seconds = clock.passed()
            if not done and all(slot.index is None and slot.seconds > START_SECONDS for slot in busy):
                raise WorkerError(f"no worker came back within {START_SECONDS:.0f} s: go on with --resume later")

            # Take what has come, and replace workers that are lost.
            for slot in busy:
                index = slot.index
                try:
                    slot.pass_time(seconds)
                    if slot.pending not in done:
                        self._require_alive(slot, tokens)
                        continue
                    result = slot.take()
                except Exception as error:
                    # A process whose device has failed can do no more; that of another may.
                    if not (isinstance(error, ray.exceptions.RayError | _SilentError) or device_failed(error)):
                        raise
                    self._replace(slot, index, losses, error)
                    if index is not None:
                        queue.give_back(slot.number, index)
                    continue
                self._failed_starts = 0
                if index is not None:
                    results, peak = result
                    self._slowest = max(self._slowest, slot.seconds / tokens)
                    self._peaks[slot.number] = max(self._peaks[slot.number], peak)
                    missing -= 1
                    for member, (scores, spent) in zip(members[index], results, strict=True):
                        yield member, scores, spent

    def retain(self, candidates: Sequence[Ranks]) -> None:
        """See `Evaluator.retain`."""
        for slot in self._slots:
            slot.actor.retain.remote(candidates)

    def _require_alive(self, slot: _WorkerSlot, tokens: int) -> None:
        """Raise _SilentError if the worker will not finish what it was sent."""
        if slot.silence > SILENT_SECONDS:
            raise _SilentError(f"no sign of life for {SILENT_SECONDS:.0f} s")
        limit = max(HANGING_SECONDS, HANGING * self._slowest * tokens)
        if slot.index is not None and self._slowest and slot.seconds > limit:
            raise _SilentError(f"an evaluation that should be done within {limit:.0f} s is not")

    def _replace(self, slot: _WorkerSlot, index: int | None, losses: Counter[int], error: Exception) -> None:
        """Start another worker in the slot of a lost one, unless that has been in vain.

        Args: index: of the batch that the worker evaluated; None where it was starting.
        """
        if index is None:
            self._failed_starts += 1
        else:
            losses[index] += 1
        if self._failed_starts >= MAX_LOSSES or losses[index] >= MAX_LOSSES:
            raise WorkerError(
                f"workers were lost {MAX_LOSSES} times over ({_line(error)}): is there memory for so many? go on with "
                "--resume and fewer --workers"
            ) from error
        reason = f" ({error})" if isinstance(error, _SilentError) else ""
        progress.note(f"a worker was lost{reason}: another takes its place")
        self._end(slot)  # it may only have been out of reach
        slot.fill(self._spawn(), self._packed)

    def _spawn(self) -> Any:
        return self._actor.remote()

    def _end(self, slot: _WorkerSlot) -> None:
        self._kill(slot.actor)
        if self._own and slot.process is not None:
            # Ray asks a worker to end before it makes it end, and a stopped process does not hear that.
            with suppress(ProcessLookupError):
                os.kill(slot.process, signal.SIGKILL)

    def _kill(self, actor: Any) -> None:
        import ray

        ray.kill(actor)

    def _connect(self) -> None:
        """To the cluster, or to one that ends with us; a connection that the caller has made already is used."""
        import ray

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray replaces signal handlers while it starts: ours are put back.
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if isinstance(self._workers, str):
                with own_signals():
                    ray.init(self._workers, **quiet)
            else:
                size = sum(tensor.nbytes for tensor in self._evaluator.model.state_dict().values())
                self._open.enter_context(alone_on_this_machine())
                with own_signals():
                    ray.init(
                        "local", num_cpus=self._workers * THREADS, include_dashboard=False,
                        object_store_memory=3 * size + _STORE, **quiet,
                    )  # fmt: skip
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            hint = "; if it asks for a token, set RAY_AUTH_MODE=token" if isinstance(self._workers, str) else ""
            raise InputError(f"no Ray cluster for --workers {self._workers}: {_line(error)}{hint}") from error
        self._own = isinstance(self._workers, int)
        self._open.callback(ray.shutdown)

    def _capacity(self) -> int:
        """How many workers the cluster can take."""
        import ray

        has = ray.cluster_resources()
        number = int(has.get("GPU", 0)) if self._gpu else int(has.get("CPU", 0)) // THREADS
        if number < 1:
            lacking = "GPU" if self._gpu else "processor"
            raise InputError(f"the Ray cluster at {self._workers} has no {lacking} to work on")
        return number

    def _wait_for_first(self) -> None:
        """Wait for one worker, so that nothing long begins without any."""
        import ray

        progress.say(f"  starting {len(self._slots)} workers")
        done, _ = ray.wait([slot.pending for slot in self._slots], timeout=START_SECONDS)
        if not done:
            raise InputError(f"no worker came up within {START_SECONDS:.0f} s: is the cluster busy?")
        try:
            ray.get(done)
        except ray.exceptions.RayError as error:
            raise InputError(f"a worker cannot start: {_line(error)}") from error


class _WorkerSlot:
    """One place in the pool: the worker that has it, and what it was sent.

    index: of the batch that is being evaluated; None while the worker starts or is idle.
    pending: Ray's reference to the answer that is awaited; None: idle.
    seconds: since `index` was sent. silence: since the last heartbeat was due. process: the worker's, once it is known.
    """

    def __init__(self, number: int, actor: Any, packed: Any):
        self.number = number
        self.fill(actor, packed)

    @property
    def idle(self) -> bool:
        return self.pending is None

    def fill(self, actor: Any, packed: Any) -> None:
        self.actor, self.index, self._place = actor, None, 0
        self.seconds = self.silence = self._pause = 0.0
        self.process: int | None = None
        self._heartbeat = self._ask()
        self.pending = actor.load.remote(packed)

    def send(self, index: int, segment: Sequence[CandidateBatch] | None, rung: int, alone: bool) -> None:
        self._place = 0 if segment is not None else self._place + 1
        self.seconds = 0.0
        self.index, self.pending = index, self.actor.evaluate.remote(segment, rung, alone, self._place)

    def pass_time(self, seconds: float) -> None:
        """So much later: ask for heartbeats, and count what is awaited. Silence counts from the first heartbeat on."""
        import ray

        self.seconds += seconds
        if self._heartbeat is None:
            self._pause += seconds
            if self._pause >= HEARTBEAT_SECONDS:
                self._heartbeat = self._ask()
        elif ray.wait([self._heartbeat], timeout=0)[0]:
            # A worker that has ended raises here what its evaluation raises.
            self.process, self._heartbeat = ray.get(self._heartbeat), None
            self.silence = self._pause = 0.0
        elif self.process is not None:
            self.silence += seconds

    def _ask(self) -> Any:
        return self.actor.heartbeat.remote()

    def take(self) -> Any:
        """What came; raises what the worker raised."""
        import ray

        pending, self.pending, self.index = self.pending, None, None
        try:
            return ray.get(pending)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error


class _SilentError(Exception):
    """A worker that Ray does not know to be lost will not finish."""


class _Clock:
    """Time in which this process could listen: while it is stopped itself, no worker is late."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def passed(self) -> float:
        """Seconds since the last call."""
        before, self._last = self._last, time.monotonic()
        return min(self._last - before, 2 * TICK)


def _line(error: Exception) -> str:
    """An error's message as one line, not too long: Ray's have many."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:150]} … {text[-150:]}"
