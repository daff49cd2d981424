"""QEMU's own dump, as far as its headers: into a pipe over QMP."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress

from vmdump.errors import FormatError, QmpError, SourceError
from vmdump.formats.elf_headers import ElfHeaders, read_headers
from vmdump.sources.header_stream import HeaderStream
from vmdump.sources.qemu.monitor import Monitor
from vmdump.sources.qemu.way import ELSEWHERE

__all__ = ["ask_headers"]

_FD_NAME = "vmdump"
_PIPE_SIZES = (64 << 10, 1 << 20)
"""Bytes. QEMU fails when such a pipe is full, and waits for nobody; x86's notes of 80 vCPUs fit, of 1,200.
Beyond them it has to wait."""


class _PipeFull(Exception):
    """QEMU's headers need more than the pipe holds."""


def ask_headers(monitor: Monitor, cancelled: Callable[[], bool]) -> ElfHeaders:
    """Let QEMU begin an ELF dump into a pipe, take its headers and notes, and close the pipe.

    QEMU stops a running guest for that, for some 0.5 ms, and lets it run again. Its main loop writes the
    dump: were it to wait for a reader that somebody has suspended, guest and monitors would wait with it.

    Parameters
    ----------
    monitor : Monitor
        The guest's.
    cancelled : callable
        Asked while waiting.

    Raises
    ------
    QmpError
        QEMU refuses to dump.
    FormatError
        What it writes are not ELF headers.
    Cancelled
        `cancelled` returned true.
    """
    for size in _PIPE_SIZES:
        with suppress(_PipeFull):
            return _take_headers(monitor, cancelled, size)
    return _take_headers(monitor, cancelled, None)


def _take_headers(monitor: Monitor, cancelled: Callable[[], bool], pipe_size: int | None) -> ElfHeaders:
    """Take the headers through a pipe of a size, which may raise _PipeFull, or one whose writer waits."""
    reader, writer = os.pipe()
    try:
        try:
            monitor.wait(monitor.pass_fd(writer, _FD_NAME), cancelled=cancelled)
            if pipe_size is not None:
                # Not before: QEMU makes what it is given blocking.
                os.set_blocking(writer, False)
                with suppress(OSError):  # beyond pipe-max-size, or the user's share; it is only a wish
                    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, pipe_size)
        except QmpError as error:
            if not error.error_class:
                raise
            raise SourceError(
                "what is behind this socket takes no file descriptor", path=monitor.path, hint=ELSEWHERE
            ) from error
        finally:
            os.close(writer)
        request = {"paging": False, "protocol": f"fd:{_FD_NAME}"}
        answer = monitor.begin(monitor.ask("dump-guest-memory", request))
        pipe = HeaderStream(reader, monitor.path, answer.done, cancelled)
        try:
            headers = read_headers(pipe.read, path=monitor.path)
        except FormatError:
            # QEMU closes the pipe first, and then says why.
            refusal = answer.exception() if pipe.at_end else None
            if refusal is None:
                raise
            if pipe_size is not None and pipe.began and isinstance(refusal, QmpError) and refusal.error_class:
                raise _PipeFull from refusal
            with suppress(QmpError):
                monitor.execute("closefd", {"fdname": _FD_NAME})
            raise refusal from None
    finally:
        os.close(reader)
    # It fails with EAGAIN or EPIPE, after which QEMU takes commands again; or all fitted into the pipe.
    failure = answer.exception()
    if not isinstance(failure, QmpError | None):
        raise failure
    monitor.demand_alive()
    return headers
