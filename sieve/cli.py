"""The command line. Results go to standard output, progress and errors to standard error."""

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sieve import __version__
from sieve.commands.calibrate import calibrate
from sieve.commands.compare import compare
from sieve.commands.demo import demo
from sieve.commands.evaluate import evaluate
from sieve.commands.export import export
from sieve.commands.generate import generate
from sieve.commands.heal import heal
from sieve.commands.help import WIDEST, GroupedCommand
from sieve.commands.info import info
from sieve.commands.methods import methods
from sieve.commands.predict import predict
from sieve.commands.prune import prune
from sieve.commands.push import push
from sieve.commands.tasks import tasks
from sieve.errors import SieveError, StorageError
from sieve.utils import interrupts, streams
from sieve.utils.devices import device_error
from sieve.utils.messages import one_line
from sieve.utils.terminal import printable

EXIT_CODES = """Exit codes: 0 success · 1 unexpected error (SIEVE_TRACEBACK=1 shows where) · 2 bad input or usage ·
3 NaN or infinity in model or data · 4 a file cannot be read or written · 5 no model within the tolerance ·
6 workers lost · 7 the device failed or lacks memory · 130, 143, 129 ended by Ctrl-C, SIGTERM, SIGHUP"""


class _Commands(TyperGroup):
    def invoke(self, context: typer.Context) -> Any:
        # Typer would leave without a word.
        with interrupts.reported(lambda: "interrupted: nothing half-written is left"):
            return super().invoke(context)


app = typer.Typer(
    cls=_Commands,
    help="The smallest language model that still does your task.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sieve {__version__}")
        raise typer.Exit


@app.callback()
def _of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None: ...


COMMANDS = {
    "prune": prune,
    "demo": demo,
    "heal": heal,
    "export": export,
    "eval": evaluate,
    "predict": predict,
    "generate": generate,
    "calibrate": calibrate,
    "info": info,
    "compare": compare,
    "push": push,
    "tasks": tasks,
    "methods": methods,
}
"""By name, as `sieve --help` lists them. A new command is a file in `sieve/commands/` and a line here."""

for _name, _command in COMMANDS.items():
    app.command(_name, cls=GroupedCommand)(_command)


def main() -> None:
    """Entry point: a one-line message and an exit code in place of a traceback (SIEVE_TRACEBACK=1 shows it)."""
    if os.environ.get("SIEVE_TRACEBACK"):
        app()
    with streams.lenient_streams(), interrupts.handled():
        code = _run()
    sys.exit(code)


def _run() -> int:
    """Do what the command line says; the exit code."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return _delivered(end.code or 0)
    except interrupts.Interrupted as interrupted:
        return _fail(str(interrupted), interrupted.exit_code)
    except SieveError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        told = device_error(error)
        if told is not None:
            return _fail(str(told), told.exit_code)
        return _fail(f"unexpected {type(error).__name__}: {one_line(error)} (SIEVE_TRACEBACK=1 shows where)", 1)
    return 0


def _delivered(code: int) -> int:
    """The exit code; a result that standard output could not take is an error, unless its reader went away."""
    error = streams.output_error()
    if code == 0 and error is not None and error.errno not in (errno.EPIPE, errno.EBADF):
        reason = error.strerror or type(error).__name__
        return _fail(f"cannot write to standard output: {reason}", StorageError.exit_code)
    return code


def _fail(message: str, code: int) -> int:
    print(f"sieve: {printable(message)}", file=sys.stderr)
    return code
