"""How a Ray cluster of our own starts: for this process alone, which keeps its environment and its signals."""

import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

_TOKEN = secrets.token_hex(32)  # of our own clusters


@contextmanager
def alone_on_this_machine() -> Iterator[None]:
    """A cluster that starts inside the block listens on the loopback interface, and asks its clients for a token."""
    from ray._private import ray_constants

    # Ray has no other switch for it. It is read when ray is imported, here and in the processes that ray starts.
    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if "RAY_AUTH_MODE" not in os.environ:
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    clusters = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    with _environment(settings):
        ray_constants.ENABLE_RAY_CLUSTER = False
        _reread_environment()
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = clusters
    _reread_environment()


def _reread_environment() -> None:
    """Ray remembers what it read at its import; versions that know no tokens have nothing to be told."""
    with suppress(ImportError, AttributeError):
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; afterwards the handler that was there before is there again."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    theirs = False
    try:
        yield
    except SystemExit:
        # What Ray makes of a SIGTERM that comes while it starts; nothing else in it exits.
        theirs = main and before is not None
        raise
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)
        if theirs:
            signal.raise_signal(signal.SIGTERM)
