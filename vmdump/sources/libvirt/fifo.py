"""libvirt's own dump of a domain, as far as its headers: into a pipe that has a name."""

from __future__ import annotations

import concurrent.futures
import fcntl
import os
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

from vmdump.errors import FormatError
from vmdump.formats.elf_headers import ElfHeaders, read_headers
from vmdump.sources.header_stream import HeaderStream
from vmdump.sources.libvirt.connection import never
from vmdump.sources.libvirt.domain import Domain
from vmdump.sources.libvirt.holder import held_by

__all__ = ["headers_through_fifo"]

_COMMAND = "dump"
_HIGH = 700
"""No small number: were this process killed, and its number given to another one before libvirt opens the
name, there is no such descriptor. Limits of 1024 are usual; of a lower one it is two thirds."""
_LEAVE_WAIT = 2.0
"""Seconds, where somebody waits for the end, until libvirt sees that nobody reads; it takes 10 ms."""


def headers_through_fifo(domain: Domain, cancelled: Callable[[], bool] = never) -> ElfHeaders:
    """Let libvirt begin an ELF dump into a pipe, take its headers and notes, and close the pipe.

    QEMU stops a running guest until it finds that nobody reads, for some 20 ms, and lets it run again; a
    paused one stays paused. libvirt has a job of its own meanwhile, so that its daemon knows of the dump that
    ends, and it does not mark the domain as tainted.

    The daemon opens the pipe by its name in /proc: were this process killed, a FIFO with a name of its own
    would be left behind, and a daemon that came to it later would wait for a reader for ever.

    Parameters
    ----------
    domain : Domain
        The guest's.
    cancelled : callable
        Asked while waiting.

    Raises
    ------
    GuestBusy
        Somebody else has a job on the domain, or it is not active.
    AccessDenied
        libvirt does not let this user dump it.
    QmpError
        QEMU refuses to dump; the daemon has ended, or does not answer.
    FormatError
        What is written are not ELF headers.
    Cancelled
        `cancelled` returned true.
    """
    dump: concurrent.futures.Future[object] | None = None
    reader, writer = os.pipe()
    try:
        try:
            high = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, _high_number())
        finally:
            os.close(writer)
        try:
            with _process_with(high, domain) as pid:
                dump = domain.begin_dump(f"/proc/{pid}/fd/{high}")
                headers = _read(reader, domain, dump, cancelled)
        finally:
            os.close(high)
    finally:
        os.close(reader)
        if dump is not None:
            concurrent.futures.wait((dump,), _LEAVE_WAIT)
    # The error that nobody read the rest is none; but without an end of its job, the domain is still in use.
    domain.connection.await_result(dump, what=_COMMAND, name=domain.path, cancelled=cancelled)
    return headers


def _high_number() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _HIGH if limit == resource.RLIM_INFINITY else min(_HIGH, limit * 2 // 3)


def _process_with(fd: int, domain: Domain) -> AbstractContextManager[int]:
    """Give a process that has a descriptor open, and into which the daemon may look."""
    if os.geteuid() == 0 and domain.connection.is_session:
        # A user's daemon and its QEMUs are of the same user.
        with suppress(OSError):
            owner = os.stat(f"/proc/{domain.pid}")
            if owner.st_uid != 0:
                return held_by(owner.st_uid, owner.st_gid, fd)
    return nullcontext(os.getpid())


def _read(
    reader: int, domain: Domain, dump: concurrent.futures.Future[object], cancelled: Callable[[], bool]
) -> ElfHeaders:
    def ended() -> bool:
        return dump.done() or not domain.connection.alive

    stream = HeaderStream(reader, domain.path, ended, cancelled)
    try:
        return read_headers(stream.read, path=domain.path)
    except FormatError as failure:
        if not stream.at_end:
            raise
        # QEMU closes its end first, and libvirt says why.
        domain.connection.await_result(dump, what=_COMMAND, name=domain.path, cancelled=cancelled)
        error = dump.exception()
        if error is None:
            raise
        raise domain.connection.failure(error, _COMMAND, domain.path) from failure
