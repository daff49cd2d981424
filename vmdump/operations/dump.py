"""Dump a guest: refuse, hold it, lay it out, write it, and report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict, Unpack

from vmdump.errors import RequestError, naming_shortages
from vmdump.formats.names import DEFAULT_FORMAT
from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import VmcoreinfoChoice
from vmdump.opening import as_source
from vmdump.operations.report import Report
from vmdump.pipeline.control import Control
from vmdump.pipeline.workers import check_threads
from vmdump.sinks.opening import open_sink
from vmdump.sources.base import Source
from vmdump.writers.base import Ahead, Writer
from vmdump.writers.registry import make_writer
from vmdump.writers.tally import Tally

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["DumpOptions", "Request", "check_request", "dump", "make_request"]


@dataclass(frozen=True)
class Request:
    """A dump that was checked and can begin.

    Attributes
    ----------
    source : Source
        Holds the guest.
    owned : bool
        The source is closed when the request has run.
    format : str
        As it was named.
    writer : Writer
        Of that format.
    output : str or path
        As for :func:`vmdump.dump`.
    threads : int
        Worker threads.
    force, pause : bool
        As for :func:`vmdump.dump`.
    vmcoreinfo : VmcoreinfoChoice
        Which one the guest is to have.
    parts : sequence of str
        The files of a split set, in the place of the output; empty for a dump in one file.
    """

    source: Source
    owned: bool
    format: str
    writer: Writer
    output: str | os.PathLike[str]
    threads: int
    force: bool
    pause: bool
    vmcoreinfo: VmcoreinfoChoice
    parts: Sequence[str] = ()

    @naming_shortages()
    def run(self, control: Control) -> Report:
        """Dump the guest.

        Parameters
        ----------
        control : Control
            Told of every chunk.

        Raises
        ------
        VmdumpError
            As for :func:`vmdump.dump`.
        """
        try:
            return self._write_set(control) if self.parts else self._write(control)
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Close what was opened for it; what :meth:`run` ends with."""
        if self.owned:
            self.source.close()

    def _write(self, control: Control) -> Report:
        began = time.perf_counter()
        writer, threads = self.writer, self.threads
        with (
            open_sink(self.output, force=self.force, cancelled=control.cancelled) as sink,
            ExitStack() as stack,
        ):
            layout = writer.layout_for(sink)
            sink.begin(self.source.guest.files, self.source.in_use)
            ahead: Ahead | None = None

            def write_ahead(running: Guest) -> None:
                nonlocal ahead
                ahead = writer.write_ahead(running, sink, threads=threads, control=control)
                if ahead is not None:
                    stack.enter_context(closing(ahead))

            guest = stack.enter_context(
                self._held(control, write_ahead if writer.writes_ahead(sink) else None)
            )
            sink.begin(guest.files)
            plan = (ahead or writer).plan(guest)
            control.start(plan.memory_size)
            tally = plan.write(sink, threads=threads, control=control, release=self.source.release)
        return self._report(
            guest,
            tally,
            name=sink.name,
            layout=layout,
            guest_bytes=plan.guest_size,
            seconds=time.perf_counter() - began,
        )

    def _write_set(self, control: Control) -> Report:
        """Write the parts of a set one after another, each with all threads."""
        from vmdump.sinks.set import SinkSet  # few dumps are split

        began = time.perf_counter()
        tally = Tally()
        with (
            SinkSet(list(self.parts), force=self.force, cancelled=control.cancelled) as parts,
            self._held(control) as guest,
        ):
            plans = self.writer.plan_split(guest, len(self.parts))
            control.start(sum(plan.memory_size for plan in plans))
            for sink in parts.sinks:
                sink.begin(guest.files)
            for plan, sink in zip(plans, parts.sinks, strict=True):
                tally += plan.write(sink, threads=self.threads, control=control, release=_keep)
        return self._report(
            guest,
            tally,
            name=os.fspath(self.output),
            layout="standard",
            guest_bytes=guest.size,
            seconds=time.perf_counter() - began,
        )

    def _held(
        self, control: Control, prepare: Callable[[Guest], None] | None = None
    ) -> AbstractContextManager[Guest]:
        """Hold the source's guest, with the VMCOREINFO that is wanted; see :meth:`Source.held`."""
        vmcoreinfo = replace(self.vmcoreinfo, progress=control.side_work())
        return self.source.held(
            pause=self.pause, cancelled=control.cancelled, prepare=prepare, vmcoreinfo=vmcoreinfo
        )

    def _report(
        self,
        guest: Guest,
        tally: Tally,
        *,
        name: str,
        layout: str,
        guest_bytes: int,
        seconds: float,
    ) -> Report:
        return Report(
            output=name,
            format=self.format,
            layout=layout,
            codec=self.writer.codec,
            engine=self.writer.engine,
            level=self.writer.level,
            threads=self.threads,
            guest_bytes=guest_bytes,
            hole_bytes=tally.hole_bytes,
            output_bytes=tally.size,
            zero_pages=tally.zero_pages,
            plain_pages=tally.plain_pages,
            compressed_pages=tally.compressed_pages,
            copied_pages=tally.copied_pages,
            excluded_pages=tally.excluded_pages,
            changed_pages=tally.changed_pages,
            unreadable=tuple(guest.unreadable),
            fuzzy=guest.fuzzy,
            paused_seconds=self.source.paused_seconds,
            seconds=seconds,
            parts=tuple(self.parts),
            vmcoreinfo_found=None if guest.found_vmcoreinfo is None else guest.found_vmcoreinfo.address,
            partial_pages=tally.partial_pages,
            lost_pages=guest.lost_pages,
        )


def _keep() -> None:
    """Do not release a guest of which there is more to read."""


class DumpOptions(TypedDict, total=False):
    """The options of :func:`dump` and :func:`start_dump`; :func:`dump` says what they mean."""

    format: str
    layout: str
    engine: str | None
    level: int | None
    threads: int | None
    begin: int | None
    length: int | None
    paging: bool
    force: bool
    pause: bool
    vmcoreinfo: bytes | str | os.PathLike[str] | None
    search: bool
    compat: str | None


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


@naming_shortages()
def check_request(
    source: AnySource,
    output: str | os.PathLike[str],
    *,
    format: str = DEFAULT_FORMAT,
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
) -> Request:
    """Refuse what cannot be done before anything is opened or created; parameters as for :func:`vmdump.dump`.

    Raises
    ------
    VmdumpError
        As for :func:`vmdump.dump`.
    """
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
    )
    return make_request(
        source,
        output,
        format,
        writer,
        threads=threads,
        force=force,
        pause=pause,
        vmcoreinfo=vmcoreinfo,
        search=search,
    )


@naming_shortages()
def make_request(
    source: AnySource,
    output: str | os.PathLike[str],
    format: str,
    writer: Writer,
    *,
    threads: int | None,
    force: bool,
    pause: bool = True,
    vmcoreinfo: bytes | str | os.PathLike[str] | None,
    search: bool,
    owned: bool = False,
    parts: Sequence[str] = (),
) -> Request:
    """Open the source, and refuse what cannot be done with it, before anything is created.

    Parameters
    ----------
    source, sink, threads, force, pause, vmcoreinfo, search
        As for :func:`vmdump.dump`.
    format : str
        As it was named.
    writer : Writer
        Of that format.
    owned : bool
        Close a source that is open already when the request has run, as one that was opened here.
    parts : sequence of str
        The files of a split set, which the writer can write.

    Raises
    ------
    VmdumpError
        As for :func:`vmdump.dump`.
    """
    with ExitStack() as stack:
        if owned and isinstance(source, Source):
            stack.callback(source.close)
        threads = check_threads(threads)
        choice = VmcoreinfoChoice.read(vmcoreinfo, search=search and writer.takes_found_vmcoreinfo)
        if isinstance(choice.given, int) and not choice.search:
            raise RequestError("search: found:N names what a search finds", parameter="search")
        opened, opened_here = as_source(source)
        if opened_here:
            stack.callback(opened.close)
        guest = choice.without_search(opened.guest)
        if parts:
            writer.plan_split(guest, len(parts))
        else:
            writer.check(guest)
        stack.pop_all()
    return Request(
        source=opened,
        owned=owned or opened_here,
        format=format,
        writer=writer,
        output=output,
        threads=threads,
        force=force,
        pause=pause,
        vmcoreinfo=choice,
        parts=parts,
    )
