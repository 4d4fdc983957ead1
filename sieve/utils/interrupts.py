"""SIGINT, SIGTERM and SIGHUP alike end a run by an exception, so that every `finally` on the way out cleans up."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A terminal that closes and a service manager send several signals: those that follow do not disturb the clean-up.
CLEAN_UP_SECONDS = 5.0


class Interrupted(BaseException):
    """The run ends by a signal; `str` says what is left of it. No KeyboardInterrupt, which typer keeps to itself."""

    def __init__(self, message: str):
        super().__init__(message)
        self.exit_code = 128 + (_received[0] if _received else signal.SIGINT)


_received: list[int] = []


@contextmanager
def handled() -> Iterator[None]:
    """Inside the block the signals raise KeyboardInterrupt. What the caller ignores (`nohup`) stays ignored."""
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    until = 0.0

    def raise_interrupt(number: int, frame: object) -> None:
        nonlocal until
        now = time.monotonic()
        if now < until:
            return
        until = now + CLEAN_UP_SECONDS
        _received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, raise_interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def reported(left: Callable[[], str]) -> Iterator[None]:
    """Turn what a signal does to the block into `Interrupted`, with the message that `left` gives afterwards."""
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        # Libraries turn a KeyboardInterrupt in the middle of them into errors of their own.
        if isinstance(error, KeyboardInterrupt) or _received:
            raise Interrupted(left()) from error
        raise
