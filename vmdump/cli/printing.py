"""The one way to the terminal: whatever is printed goes through here, and none of it steers the terminal.

Names of files, what a dump says of its guest, what a QEMU answers: all of that comes from elsewhere, and may
hold escape sequences, newlines that forge a line, or characters that turn the direction of writing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from vmdump.errors import SinkError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "console",
    "emphasised",
    "forget_json",
    "harmless",
    "printing",
    "say",
    "say_for_now",
    "say_json",
    "share",
    "told_json",
]

_told: list[bool] = []
_NEW_LINE = "\r\033[K"
"""Back to the start of the line, which is erased."""


def harmless(text: str, keep: str = "") -> str:
    r"""Escape everything but printable characters, spaces and those to keep, as Python writes it in a string.

    Bytes of a name that are no UTF-8 are lone surrogates in Python: 0xff is ``\udcff``.

    Examples
    --------
    >>> print(harmless("a\x1b[2J\u202e\n\udcff"))
    a\x1b[2J\u202e\n\udcff
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def emphasised(text: str, colour: str = "") -> str:
    """Give a text of vmdump's own in a colour, or in bold; click leaves that away where no terminal is."""
    return click.style(text, fg=colour) if colour else click.style(text, bold=True)


def share(part: int, whole: int) -> str:
    """Write a share: ``12.3%``; one that is too small to be seen is not written as none.

    Examples
    --------
    >>> share(1, 8), share(1, 100000), share(0, 8)
    ('12.5%', '<0.1%', '0.0%')
    """
    return "<0.1%" if 0 < part < whole / 2000 else f"{part / whole:.1%}"


def _give_up(stream: TextIO) -> None:
    """Let nothing more come of it: Python flushes it once more at its exit, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Go on if standard error cannot be written to: what was done is done, and its exit code says so."""
    try:
        yield
    except OSError:
        _give_up(sys.stderr)


class _Untroubled:
    """A stream for progress bars, whose terminal may go away."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _telling():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _telling():
            self._stream.flush()


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Turn the OSError of printing into a SinkError: what was printed into is full, or was not open."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _give_up(sys.stdout)
        raise SinkError("cannot print", path="standard output", errno=error.errno) from error


def say(*lines: str, err: bool = False, keep: str = "") -> None:
    """Print each text as one line, on standard output or on standard error; `keep` as for :func:`harmless`.

    Raises
    ------
    SinkError
        Standard output cannot be written to.
    """
    text = "\n".join(harmless(line, keep) for line in lines)
    with _telling() if err else printing():
        click.echo(text, err=err)


def say_for_now(text: str, colour: str = "") -> None:
    """Put a text in the place of the last one on the terminal's line, on standard error."""
    shown = click.style(harmless(text), fg=colour) if colour else harmless(text)
    with _telling():
        click.echo(f"{_NEW_LINE}{shown}", err=True, nl=False)


def say_json(value: object, *, err: bool = False) -> None:
    """Print a value as JSON, on one line of standard output or standard error; errors as of :func:`say`."""
    import json  # five modules, of use to few commands

    say(json.dumps(value), err=err)
    if not err:
        _told.append(True)


def told_json() -> bool:
    """Tell whether JSON went to standard output: there is one document, also if an error follows."""
    return bool(_told)


def forget_json() -> None:
    """Begin another command."""
    _told.clear()


def console(*, err: bool = False) -> Console:
    """Make what prints tables; rich is loaded only for that, it costs 50 ms.

    Texts mean what they say: brackets are no markup, and ``:names:`` no pictures.
    """
    from rich.console import Console
    from rich.text import Text

    class HarmlessConsole(Console):
        def render_str(self, text: str, *args: Any, **options: Any) -> Text:
            return super().render_str(harmless(text), *args, **options)

        def on_broken_pipe(self) -> None:
            raise

        def print(self, *objects: Any, **options: Any) -> None:
            with contextlib.nullcontext() if err else printing():
                super().print(*objects, **options)

    # A progress bar is written from a thread as well, and at its end.
    file = cast(TextIO, _Untroubled(sys.stderr)) if err else None
    return HarmlessConsole(file=file, stderr=err, markup=False, emoji=False, highlight=False)
