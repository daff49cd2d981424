"""Dump a guest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from vmdump.errors import RequestError, naming_shortages
from vmdump.formats.levels import parse_level
from vmdump.formats.names import DEFAULT_FORMAT, Format, Layout
from vmdump.opening import as_source
from vmdump.operations.report import Report
from vmdump.operations.request import Choice, Request, Target, check_keywords, make_request
from vmdump.pipeline.control import Control
from vmdump.pipeline.workers import check_threads
from vmdump.writers.registry import make_writer

if TYPE_CHECKING:
    from vmdump.codecs.registry import EngineName
    from vmdump.opening import AnySource

Exclude = int | str | Iterable[str]
__all__ = ["DumpOptions", "check_request", "dump"]


class DumpOptions(TypedDict, total=False):
    """The options of :func:`dump` and :func:`start_dump`; :func:`dump` says what they mean."""

    format: Format
    layout: Layout
    engine: EngineName | None
    level: int | None
    threads: int | None
    begin: int | None
    length: int | None
    paging: bool
    force: bool
    pause: bool
    vmcoreinfo: bytes | str | os.PathLike[str] | None
    search: bool
    compat: Literal["qemu"] | None
    exclude: Exclude
    force_fuzzy: bool
    like: Choice | None
    keep_partial: bool


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
        Replace an existing output file.
    pause : bool
        Pause a running guest while it is read, and resume it. Without it the dump of a running guest
        is fuzzy: each page is valid, but not all are of one moment.
    vmcoreinfo : bytes, str or path, optional
        VMCOREINFO in the place of what the guest gives: its text, a file of it, or ``"found:N"``, the Nth of
        those that :func:`info` finds in the guest's memory. A file of such a name is a `Path`.
    search : bool
        Look for VMCOREINFO in the guest's memory where nothing tells it; not for `compat`.
    compat : {"qemu"}, optional
        Write, byte for byte, the file that QEMU 7.2 would have written of the guest: elf, or kdump-zlib,
        which is flattened unless another layout is asked for.
    exclude : int, str, or iterable of str
        Which types of pages are not dumped: a level of makedumpfile from 0 to 31, or names of its bits:
        ``zero``, ``cache``, ``cache-private``, ``user``, ``free``. What each page is used for is told by the
        guest's Linux kernel, through VMCOREINFO; pages in doubt are dumped. Levels 0 and 1 need no kernel,
        and are the same here: zeros take no room. In an ELF file runs of fewer than 256 pages stay.
    force_fuzzy : bool
        Exclude more than zeros even with `pause` false. A page that is free when its type is told may hold
        data of the kernel a moment later, which would be missing without a trace.
    like : Candidate, optional
        A choice of :func:`bench`, whose format, engine and level are taken; it goes without these three.
    keep_partial : bool
        If the dump fails or is cancelled midway, leave what was written, marked as incomplete, under the
        output's name with ``.partial`` behind it; the error's `kept_as` names it. Only for an output that is
        created, and not with `compat`.

    Returns
    -------
    Report
        Its `unreadable` says which memory the host could not read.

    Raises
    ------
    TypeError
        There is no such keyword.
    RequestError
        The request contradicts itself.
    EngineUnavailable, CapabilityError
        This build or this guest does not support it.
    SourceError, AccessDenied, LayoutError, FormatError
        Reading the guest failed, or its blocks are wrong.
    GuestBusy, QmpError
        A live guest is busy, or its QEMU has ended.
    SinkError, OutputExists
        Writing the output failed.
    """
    check_keywords("vmdump.dump", options, {*DumpOptions.__annotations__, "progress"})
    return check_request(source, output, **options).run(Control(progress))


@naming_shortages()
def check_request(
    source: AnySource,
    output: str | os.PathLike[str],
    *,
    format: str | None = None,
    layout: str = "auto",
    engine: str | None = None,
    level: int | None = None,
    threads: int | None = None,
    begin: int | None = None,
    length: int | None = None,
    paging: bool = False,
    force: bool = False,
    pause: bool = True,
    vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
    search: bool = True,
    compat: str | None = None,
    exclude: Exclude = 1,
    force_fuzzy: bool = False,
    like: Choice | None = None,
    keep_partial: bool = False,
) -> Request:
    """Open the source and check the request, before anything is created; parameters as for :func:`dump`.

    Raises
    ------
    VmdumpError
        As for :func:`dump`.
    """
    if like is not None:
        if format is not None or engine is not None or level is not None:
            raise RequestError("like: goes without format, engine and level", parameter="like")
        if not isinstance(like, Choice):
            raise RequestError(f"like: {like!r} is no candidate of vmdump.bench()", parameter="like")
        format, engine, level = like.format, like.engine or None, like.level
    format = DEFAULT_FORMAT if format is None else format
    left_out = parse_level(exclude)
    if left_out > 1 and not pause and not force_fuzzy:
        raise RequestError(
            f"exclude: level {left_out} of a guest that runs would lack pages that were free and are not any "
            "more; let it be paused, or demand that with --force-fuzzy",
            parameter="exclude",
        )
    if keep_partial and compat is not None:
        raise RequestError(
            "keep_partial: QEMU's own files have no mark; leave out compat", parameter="keep_partial"
        )
    writer = make_writer(
        format,
        layout=layout,
        engine=engine,
        level=level,
        begin=begin,
        length=length,
        paging=paging,
        compat=compat,
        pause=pause,
        vmcoreinfo=vmcoreinfo is not None,
        filters=left_out > 1,
    )
    target = Target(
        output=output,
        format=format,
        writer=writer,
        threads=check_threads(threads),
        force=force,
        exclude=left_out,
        keeps=keep_partial,
    )
    return make_request(lambda: as_source(source), target, vmcoreinfo=vmcoreinfo, search=search, pause=pause)
