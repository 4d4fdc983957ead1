"""SIGINT, SIGTERM and SIGHUP all end a run by an exception, so that every `finally` cleans up."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A closing terminal or a service manager sends several signals: the later ones must not disturb the clean-up.
CLEAN_UP_SECONDS = 5.0


class Interrupted(BaseException):
    """A signal ended the run; `str` says what is left of it. Not a KeyboardInterrupt, because typer catches these."""

    def __init__(self, message: str):
        super().__init__(message)
        self.exit_code = 128 + (_received[0] if _received else signal.SIGINT)


_received: list[int] = []


@contextmanager
def handled() -> Iterator[None]:
    """Inside the block the signals raise KeyboardInterrupt. Signals that the caller ignores (`nohup`) stay ignored."""
    _received.clear()
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    until = 0.0

    def raise_interrupt(number: int, frame: object) -> None:
        nonlocal until
        now = time.monotonic()
        # A second signal shortly after the first must not interrupt the clean-up.
        if now < until:
            return
        until = now + CLEAN_UP_SECONDS
        _received.append(number)
        raise KeyboardInterrupt

    # Replace the handlers, except for signals that the caller ignores.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, raise_interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None is a handler that was not set by Python; it cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def reported(left: Callable[[], str]) -> Iterator[None]:
    """Turn a signal inside the block into `Interrupted`, with the message that `left` returns afterwards."""
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        # Some libraries turn a KeyboardInterrupt inside them into errors of their own.
        if isinstance(error, KeyboardInterrupt) or _received:
            raise Interrupted(left()) from error
        raise
