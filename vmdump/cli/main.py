"""The command ``vmdump``: commands, exit codes and signals."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from vmdump import __version__
from vmdump.cli.failures import error_as_dict
from vmdump.cli.help import COMPLETE, TaughtContext, wants_colour, write_end
from vmdump.cli.printing import forget_json, harmless, printing, say, say_json, told_json
from vmdump.cli.signals import Interrupted, Signals
from vmdump.cli.streams import open_standard_streams
from vmdump.cli.verbosity import verbose_option
from vmdump.errors import Cancelled, OutOfResources, RequestError, SinkError, SourceError, VmdumpError

__all__ = ["main", "run_line"]

_GROUPS = {
    "Dump a guest": {
        "dump": "Write the memory of SOURCE to OUTPUT.",
        "guests": "List the running guests of this host, and the command that dumps each of them.",
        "bench": "Tell which compression is best for the guest SOURCE, this machine and this disk.",
        "serve": "Serve QMP in front of QEMU, and make the dumps that clients ask for.",
    },
    "Look into a dump": {
        "info": "Tell what DUMP is: who made it and when, the guest, its memory, pages by kind, and size.",
        "dmesg": "Print the kernel's log of a Linux guest, as 'makedumpfile --dump-dmesg' does.",
        "find": "Find PATTERN in the guest's memory and print guest-physical addresses, one per line.",
        "read": "Read LENGTH bytes of the guest's memory at ADDRESS.",
        "report": "Write one HTML page about DUMP that can be mailed, and opens without a network.",
        "verify": "Read and decompress every page of DUMP.",
    },
    "Convert and repair": {
        "convert": "Write the dump SOURCE again as OUTPUT, in another format or layout.",
        "repair": "Write all intact pages of DAMAGED to OUTPUT, and mark it as incomplete.",
    },
    "Get to know vmdump": {
        "demo": "Dump a synthetic guest of SIZE in every format and read each page back.",
        "integrations": "Print the folder of the plugins by which another program reads what vmdump reads.",
        "completion": "Print the script by which a shell completes commands, options, sources and formats.",
        "capabilities": "Show the formats, codecs and engines of this build, and why something is missing.",
    },
}
"""Each is NAME_command in vmdump/cli/NAME.py, whose help begins with the same sentence."""
_COMMANDS = {name: text for group in _GROUPS.values() for name, text in group.items()}
_EXAMPLES = (
    "vmdump guests",
    "vmdump dump qmp:/run/vm.qmp vm.kdump",
    "vmdump verify vm.kdump",
    "vmdump dmesg vm.kdump",
)
_ONE_OUTPUT = ("convert", "dump", "read", "repair", "report")
"""Those that are done when their output is there."""
_SHOWS = (
    None,
    "bench",
    "capabilities",
    "completion",
    "dmesg",
    "find",
    "guests",
    "info",
    "integrations",
    "read",
)
"""Those that only show something: who reads no more of it has seen enough."""


class _Commands(click.Group):
    """Load a command when it is called: none waits for what only the others need, help for none of them."""

    context_class = TaughtContext

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        ctx.obj.one_output = cmd_name in _ONE_OUTPUT
        found: click.Command = getattr(import_module(f"vmdump.cli.{cmd_name}"), f"{cmd_name}_command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            raise click.exceptions.NoSuchCommand(name, possibilities=_COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, _COMMANDS))
        for heading, commands in _GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(longest), text) for name, text in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_end(formatter, _EXAMPLES)


@click.group("vmdump", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmdump", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@verbose_option
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
    open_standard_streams()
    with Signals(process=arguments is None) as signals:
        return run_line(list(sys.argv[1:] if arguments is None else arguments), signals)


def run_line(words: Sequence[str], signals: Signals) -> int:
    """Run the command line under handlers of signals that have not begun to raise.

    Parameters
    ----------
    words : sequence of str
        Without the program's name.
    signals : Signals
        One that has come already ends the command at once.

    Returns
    -------
    int
        As for :func:`main`.
    """
    complaint: BaseException | None = None
    code = 0
    forget_json()
    try:
        signals.begin()
        # numpy's OpenBLAS starts a thread for each processor when it is loaded, and they spin 0.1 s before
        # they sleep; nothing here multiplies matrices. OpenMP and MKL start theirs with the first product
        # only.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # At its end Python looks for garbage in all that was loaded: 17 ms, for memory that is given back
        # anyway.
        atexit.register(gc.freeze)
        code, complaint = _run(words, signals)
        signals.end()
    except Interrupted as error:
        complaint = error
    signals.end()
    if complaint is not None:
        if signals.first:
            code = signals.exit_code
        _complain(complaint, code, _words_for(complaint, signals, words), words)
    return code


def _run(words: Sequence[str], signals: Signals) -> tuple[int, BaseException | None]:
    """Run the command; its exit code, and the exception to be told of."""
    context = None
    try:
        if instruction := os.environ.get(COMPLETE):
            return _complete(instruction, signals), None
        with _vmdump.make_context("vmdump", list(words), obj=signals, color=wants_colour()) as context:
            _vmdump.invoke(context)
        with printing():
            sys.stdout.flush()
    except click.exceptions.Exit as request:
        return request.exit_code, None
    except click.ClickException as error:
        return RequestError.exit_code, error
    except (VmdumpError, BrokenPipeError) as error:
        broken = isinstance(error, BrokenPipeError)
        if broken:
            # Python flushes standard output once more at its exit, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if broken or (isinstance(error, SinkError) and error.errno == errno.EPIPE):
            if (context.invoked_subcommand if context is not None else None) in _SHOWS:
                return 0, None
            return SinkError.exit_code, error
        return getattr(error, "exit_code", 1), error
    except Exception as error:
        if shortage := OutOfResources.of(error):
            return shortage.exit_code, shortage
        return VmdumpError.exit_code, error
    return 0, None


def _complete(instruction: str, signals: Signals) -> int:
    """Answer a shell's question what may stand at the cursor; nothing of what goes wrong is of use there."""
    from click.shell_completion import shell_complete

    import vmdump.cli.completing  # noqa: F401  it has the class for bash

    with contextlib.suppress(VmdumpError, click.ClickException, click.exceptions.Exit, KeyError):
        return shell_complete(_vmdump, {"obj": signals}, "vmdump", COMPLETE, instruction)
    return 0


def _words_for(error: BaseException, signals: Signals, words: Sequence[str]) -> str:
    """Say in one line what has ended the command."""
    if signals.first:
        parts = [f"ended by {signal.Signals(signals.first).name}"]
        # What cleaning up ran into, if it did.
        parts += getattr(error, "__notes__", ())
        also = error.__context__ if isinstance(error, Interrupted) else error
        if isinstance(also, VmdumpError) and not isinstance(also, Cancelled):
            parts.append(str(also))
        kept = bool(getattr(error, "kept_as", ()))
        if len(parts) == 1 + kept:
            parts[1:1] = _what_is_left(words, kept=kept)
        return "; ".join(parts)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return ""
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "vmdump"
        if nearest := getattr(error, "possibilities", None):
            # click would name three.
            return f"{error.message.removesuffix('.')}; is it {nearest[0]}? {command} --help tells more"
        text = error.format_message()
        text = text if text.endswith("...") else text.removesuffix(".")
        return f"{text}; {command} --help tells more"
    if isinstance(error, BrokenPipeError):
        return "standard output: the reader went away"
    if isinstance(error, VmdumpError):
        return str(error) + _next_step(error, words)
    return f"{type(error).__name__}: {error}; --debug shows where"


def _what_is_left(words: Sequence[str], *, kept: bool) -> list[str]:
    """Say what an interrupted command has left behind, if cleaning up went well."""
    command = next((word for word in words if word in _COMMANDS), "")
    if command not in _ONE_OUTPUT:
        return []
    # Where it was not loaded yet, no guest was touched; and if the signal came while numpy was loaded, that
    # cannot be loaded again.
    is_live = getattr(sys.modules.get("vmdump.opening"), "names_live_guest", None)
    guest = ["the guest goes on as before"] if is_live is not None and any(map(is_live, words)) else []
    # What went to somebody else is not ours to take back.
    taken = kept or any(word == "-" or word.startswith("fd:") for word in words) or command == "read"
    return guest + ([] if taken else ["no file is left"])


def _next_step(error: VmdumpError, words: Sequence[str]) -> str:
    """Give what else to type."""
    if isinstance(error, SourceError):
        if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
            from vmdump.cli.root import as_root

            return f"; as root: {as_root(words)}"
        if error.errno == errno.ENOENT and "dump" in words[:2]:
            return "; 'vmdump guests' lists the running guests"
    return ""


def _complain(error: BaseException, code: int, message: str, words: Sequence[str]) -> None:
    if "--json" in words and not (told_json() or isinstance(error, BrokenPipeError)):
        # Where nobody reads that, the text is enough.
        with contextlib.suppress(VmdumpError, BrokenPipeError):
            say_json({"error": error_as_dict(error, code, message)})
    if "--log-json" in words:
        say_json({"event": "error", **error_as_dict(error, code, message)}, err=True)
        return
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not message:
        say(*click.unstyle(error.format_message()).split("\n"), err=True)
        return
    context = getattr(error, "ctx", None)
    if context is not None:
        say(*click.unstyle(context.get_usage()).split("\n"), err=True)
    if "--debug" in words:
        say(*_traceback(error), err=True)
    say(f"vmdump: {message}", err=True)


def _traceback(error: BaseException) -> list[str]:
    """Give the lines of the error's traceback; the text of an error has no lines of its own."""
    text = "".join(traceback.format_exception(error))
    cause: BaseException | None = error
    while cause is not None:
        text = text.replace(str(cause), harmless(str(cause)))
        cause = cause.__cause__ or cause.__context__
    return text.splitlines()
