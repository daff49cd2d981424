"""The command ``vmdump``: commands, exit codes and signals."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

import click

from vmdump import __version__
from vmdump.cli.printing import harmless, printing, say
from vmdump.errors import OutOfResources, RequestError, SinkError, VmdumpError

__all__ = ["main"]

_COMMANDS = ("bench", "capabilities", "convert", "demo", "dmesg", "dump", "info", "read", "repair", "verify")
"""Each is NAME_command in vmdump/cli/NAME.py."""
_STDERR = 2
_SIGNAL_BASE = 128
"""A shell reports a command that a signal ended as 128 + the signal's number."""


class _Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP; unwinds like Ctrl-C, so that everything is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted(number)


class _Commands(click.Group):
    """Load a command when it is called: none waits for what only the others need."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # For an unknown name all are loaded: click looks for a similar one among those that it has.
        for name in (cmd_name,) if cmd_name in _COMMANDS else _COMMANDS:
            self.add_command(getattr(import_module(f"vmdump.cli.{name}"), f"{name}_command"))
        return super().get_command(ctx, cmd_name)


@click.group("vmdump", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmdump", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def _vmdump(debug: bool) -> None:
    """Write the memory of a virtual machine to a crash dump."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; those of the process, if not given.

    Returns
    -------
    int
        The exit code: 0, that of the error's class, or 128 + the number of the signal.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # numpy's OpenBLAS starts a thread for each processor when it is loaded, and they spin 0.1 s before they
    # sleep; nothing here multiplies matrices. OpenMP and MKL start theirs with the first product only.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # At its end Python looks for garbage in all that was loaded: 17 ms, for memory that is given back anyway.
    atexit.register(gc.freeze)
    _open_standard_streams()
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        with _vmdump.make_context("vmdump", list(words)) as context:
            _vmdump.invoke(context)
        with printing():
            sys.stdout.flush()
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        say(*error.format_message().split("\n"), err=True)
        return RequestError.exit_code
    except click.ClickException as error:
        return _fail(f"{error.format_message()}; vmdump --help tells more", RequestError.exit_code, words)
    except VmdumpError as error:
        return _fail(str(error), error.exit_code, words)
    except _Interrupted as error:
        name = signal.Signals(error.number).name
        return _fail(f"ended by {name}", _SIGNAL_BASE + error.number, words)
    except BrokenPipeError:
        # Python flushes standard output once more at its exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail("standard output: the reader went away", SinkError.exit_code, words)
    except Exception as error:
        if shortage := OutOfResources.of(error):
            return _fail(str(shortage), shortage.exit_code, words)
        return _fail(f"{type(error).__name__}: {error}; --debug shows where", VmdumpError.exit_code, words)
    return 0


def _open_standard_streams() -> None:
    """Fill the descriptors 0 to 2 where a daemon closed them: no file of the dump may become one of them.

    They are opened for reading, so that a dump to a closed standard output stays an error.
    """
    while True:
        fd = os.open(os.devnull, os.O_RDONLY)
        if fd > _STDERR:
            os.close(fd)
            break
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error's: names need not fit a locale


def _fail(message: str, exit_code: int, words: Sequence[str]) -> int:
    if "--debug" in words:
        say(*_traceback(), err=True)
    say(f"vmdump: {message}", err=True)
    return exit_code


def _traceback() -> list[str]:
    """Give the lines of the error's traceback; the text of an error has no lines of its own."""
    text = traceback.format_exc()
    error = sys.exception()
    while error is not None:
        text = text.replace(str(error), harmless(str(error)))
        error = error.__cause__ or error.__context__
    return text.splitlines()
