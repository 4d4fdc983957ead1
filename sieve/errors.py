"""Errors whose message is for the user: one line that says what was wrong and what to do.

The command line prints the message alone and leaves with `exit_code`; anything that is not a
`SieveError` is a bug and keeps its traceback.
"""


class SieveError(Exception):
    """Base of every error that Sieve raises on purpose."""

    exit_code = 1


class InputError(SieveError, ValueError):
    """What the user gave cannot be used: a task, field, model, folder, option or value."""

    exit_code = 2


class UnreadOption(InputError):
    """An option was given that nothing of this run reads.

    option: its name in recipes.
    """

    def __init__(self, message: str, option: str):
        super().__init__(message)
        self.option = option


class UnreachableSize(InputError):
    """No plan is as small as what is asked for."""


class NumericsError(SieveError, ArithmeticError):
    """NaN or infinity in weights, activations or statistics; the message names the layer."""

    exit_code = 3


class StorageError(SieveError, OSError):
    """A file could not be written or is damaged (disk full, no permission, bad checksum)."""

    exit_code = 4


class ToleranceError(SieveError):
    """No candidate met the constraint; the message names the nearest one."""

    exit_code = 5


class WorkerError(SieveError):
    """Workers were lost again and again; what is finished is kept, and the search can be resumed."""

    exit_code = 6


class DeviceError(SieveError):
    """The device failed, or has not enough memory; what is finished is kept, and the run can be resumed."""

    exit_code = 7
