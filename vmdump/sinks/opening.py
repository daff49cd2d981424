"""A sink by its name."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable
from typing import Protocol

from vmdump.errors import Cancelled, RequestError, SinkError
from vmdump.sinks.base import Sink, sink_errors
from vmdump.sinks.file import FileSink, NewFile
from vmdump.sinks.place import Place

__all__ = ["named_descriptor", "open_sink"]

_STDOUT = 1
_FIFO_WAIT = 0.05
"""Seconds between two looks for a reader."""


def open_sink(
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    keeps: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> Sink:
    """Open the sink that a name stands for.

    Parameters
    ----------
    target : str or path
        A path, ``-`` for standard output, or ``fd:N``. A path that names a FIFO or a device is written
        to, if :class:`vmdump.sinks.place.Place` finds nothing against it; any other gets a new file.
    force : bool
        Replace a file that is there, and write to a FIFO or device whoever put it there. Nobody else's
        symlink is followed, but replaced.
    keeps : bool
        As of :class:`vmdump.sinks.file.NewFile`.
    cancelled : callable
        Asked while a FIFO waits for its reader.

    Raises
    ------
    OutputExists
        The file is there and `force` is false.
    SinkError
        It cannot be created.
    RequestError
        The target is empty, or ``fd:N`` has no number, or `keeps` is asked of what is no file of its own.
    Cancelled
        `cancelled` returned true.
    """
    name = os.fspath(target)
    if not name:
        raise RequestError("output: the name is empty", parameter="output")
    if keeps and named_descriptor(name) is not None:
        raise _keeps_nothing(name)
    for open_kind in _KINDS:
        sink = open_kind(name, force=force, cancelled=cancelled)
        if sink is not None:
            return sink
    return _open_path(name, force=force, keeps=keeps, cancelled=cancelled)


def _keeps_nothing(name: str) -> RequestError:
    return RequestError(
        f"keep_partial: goes with a file that is created, and {name} is none; what got there stays there",
        parameter="keep_partial",
    )


def named_descriptor(name: str) -> int | None:
    """Give the descriptor that an output names; None for a path.

    Raises
    ------
    RequestError
        It has no number.
    """
    if name in ("-", "/dev/stdout"):
        return _STDOUT
    for prefix in ("fd:", "/dev/fd/", "/proc/self/fd/"):
        number = name.removeprefix(prefix)
        if number != name:
            if not re.fullmatch("[0-9]{1,9}", number):
                raise RequestError(
                    f"output: {name!r} names no file descriptor; write fd:3", parameter="output"
                )
            return int(number)
    return None


def _open_descriptor(name: str, *, force: bool, cancelled: Callable[[], bool]) -> Sink | None:
    fd = named_descriptor(name)
    return None if fd is None else FileSink(fd, name)


def _open_path(path: str, *, force: bool, keeps: bool, cancelled: Callable[[], bool]) -> Sink:
    with sink_errors("cannot create the output", path), Place(path) as place:
        if place.refusal and not force:
            raise SinkError(place.refusal, path=path, errno=errno.EACCES, hint=place.hint)
        if place.special is not None:
            if keeps:
                raise _keeps_nothing(path)
            return FileSink(_open_special(place, place.special, cancelled), path, owned=True)
        return NewFile(path, place, force=force, keeps=keeps)


def _open_special(place: Place, status: os.stat_result, cancelled: Callable[[], bool]) -> int:
    """Open a FIFO or device; a FIFO waits for its reader, and can be cancelled meanwhile."""
    flags = os.O_WRONLY | os.O_NONBLOCK
    if stat.S_ISBLK(status.st_mode):
        flags |= os.O_EXCL  # for a disk that means: not one that is mounted, or part of something
    while True:
        try:
            fd = place.open_special(flags)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(status.st_mode):
                raise
            if cancelled():
                raise Cancelled("cancelled while the output waits for its reader") from None
            time.sleep(_FIFO_WAIT)
            continue
        os.set_blocking(fd, True)
        return fd


class _Opener(Protocol):
    def __call__(self, name: str, *, force: bool, cancelled: Callable[[], bool]) -> Sink | None: ...


_KINDS: tuple[_Opener, ...] = (_open_descriptor,)
"""Asked in turn; each gives None for a name of another kind, and what no kind knows is a path."""
