"""Standard output and error that never end a run: output without a reader is dropped, the first error is kept."""

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_forgiven = False


class _LenientFile(io.FileIO):
    """A file descriptor to write to; after its first error it accepts everything and drops it."""

    def __init__(self, descriptor: int, error: OSError | None = None):
        super().__init__(descriptor, "w", closefd=False)
        self.error = error

    def write(self, data) -> int:
        while self.error is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.error = error
            else:
                if written is not None:
                    return written
                # Another process has made the pipe non-blocking, and it is full.
                select.select([], [self], [])
        return len(data)


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Replace `sys.stdout` and `sys.stderr` inside the block, unless they have been replaced already.

    Characters that their encoding lacks are written as escapes. A descriptor that is closed is opened on the null
    device, since the next file to be opened would get its number, and with it whatever a library prints.
    """
    global _forgiven
    _forgiven = False
    closed = [_open_if_closed(descriptor) for descriptor in range(3)]
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lenient(1, sys.stdout, closed[1])
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lenient(2, sys.stderr, closed[2])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def output_error() -> OSError | None:
    """The error that has stopped standard output from taking everything, or None."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _LenientFile) and not _forgiven else None


def forgive() -> None:
    """Stop reporting errors of standard output."""
    global _forgiven
    _forgiven = True


def _open_if_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        return True
    return False


def _lenient(descriptor: int, stream: TextIO | None, closed: bool) -> TextIO:
    error = OSError(errno.EBADF, os.strerror(errno.EBADF)) if closed or stream is None else None
    raw = _LenientFile(descriptor, error)
    encoding = stream.encoding if stream is not None else "utf-8"
    if stream is not None and not closed:
        stream.flush()
    by_line = descriptor == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=by_line)
