"""vmdump as a library: dump a guest, at once, in the background or in asyncio."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack

from vmdump.operations.dump import DumpOptions, check_request
from vmdump.operations.report import Report
from vmdump.pipeline.control import Control

if TYPE_CHECKING:
    from vmdump.job import DumpJob
    from vmdump.opening import AnySource

__all__ = ["DumpOptions", "dump", "dump_async", "start_dump"]


def dump(
    source: AnySource,
    output: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Unpack[DumpOptions],
) -> Report:
    """Write a guest's memory to a dump file, in this thread and its workers.

    Parameters
    ----------
    source : str, path, sequence of paths, Source, buffer, or list of blocks
        What :func:`open_source` takes, or an open guest, or any C-contiguous buffer (a guest with one
        block at 0), or a list of `Block` or of ``(start, buffer)``. Buffers are neither copied nor written.
    output : str or path
        A path, ``-`` for standard output, or ``fd:N``. A file is created with mode 0600 and appears
        under its name only when it is whole.
    progress : callable, optional
        Called with (done, total) in bytes of guest memory after each chunk.
    format : str
        ``elf``, ``kdump-zlib`` (if not given), ``kdump-lzo``, ``kdump-snappy``, ``kdump-zstd``, or one of
        these four as ``kdump-raw-...``.
    layout : {"auto", "standard", "flattened"}
        auto is standard where the output is seekable, else flattened.
    engine : str, optional
        A demand; see :func:`capabilities`. Without it, the fastest that this build has.
    level : int, optional
        The engine's own scale; without it, the engine's default.
    threads : int, optional
        Worker threads; the processors this process may use, if not given.
    begin, length : int, optional
        Dump only ``[begin, begin + length)``, bytes of guest-physical memory; elf only.
    paging : bool
        Describe memory by the guest's page tables.
    force : bool
        Replace an output file that is there.
    pause : bool
        Stop a running guest while it is read, and let it run again. Without it the dump of a running guest
        is fuzzy: each page is valid, but not all are of one moment.
    vmcoreinfo : bytes, str or path, optional
        VMCOREINFO in the place of what the guest gives: its text, a file of it, or ``"found:N"``, the Nth of
        those that :func:`info` finds in the guest's memory. A file of such a name is a `Path`.
    search : bool
        Look for VMCOREINFO in the guest's memory where nothing tells it; not for `compat`.
    compat : {"qemu"}, optional
        Write, byte for byte, the file that QEMU 7.2 would have written of the guest: elf, or kdump-zlib,
        which is flattened unless another layout is asked for.

    Returns
    -------
    Report
        Its `unreadable` says which memory the host could not read.

    Raises
    ------
    RequestError
        The request contradicts itself.
    EngineUnavailable, CapabilityError
        This build or this guest cannot do it.
    SourceError, AccessDenied, LayoutError, FormatError
        The guest cannot be read or its blocks are wrong.
    GuestBusy, QmpError
        A live guest cannot be dumped now, or its QEMU has ended.
    SinkError, OutputExists
        The output cannot be written.
    """
    return check_request(source, output, **options).run(Control(progress))


def start_dump(source: AnySource, output: str | os.PathLike[str], **options: Unpack[DumpOptions]) -> DumpJob:
    """Begin a dump in the background; the parameters are those of :func:`dump`.

    Returns
    -------
    DumpJob
        Active already.

    Raises
    ------
    VmdumpError
        What is wrong with the request or the source is raised here, what goes wrong later by
        :meth:`DumpJob.wait`.
    """
    return _make_job(source, output, options).start()


def _make_job(source: AnySource, output: str | os.PathLike[str], options: DumpOptions) -> DumpJob:
    from vmdump.job import DumpJob  # not for the command

    request = check_request(source, output, **options)
    return DumpJob(request.run, give_up=request.give_up)


async def dump_async(
    source: AnySource, output: str | os.PathLike[str], **options: Unpack[DumpOptions]
) -> Report:
    """Write a guest's memory to a dump file, in asyncio; the parameters are those of :func:`dump`.

    Neither attaching nor dumping holds up the event loop. Cancelling the task cancels the dump: the guest
    runs again and no file is left when CancelledError arrives.

    Returns
    -------
    Report

    Raises
    ------
    VmdumpError
        As for :func:`dump`.
    """
    from vmdump.aio import start  # asyncio takes 60 ms to load, and few need it

    return await (await start(lambda: _make_job(source, output, options)))
