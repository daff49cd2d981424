"""One dump to another: any format to any, and to a split set."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

from vmdump.errors import RequestError
from vmdump.formats.names import DEFAULT_FORMAT
from vmdump.guest.guest import Guest
from vmdump.job import Report
from vmdump.opening import as_source, names_dump, names_live_guest, open_dump, open_source
from vmdump.operations.request import Request, check_request
from vmdump.pipeline.control import Control
from vmdump.pipeline.workers import check_threads
from vmdump.readers.checking import Checking
from vmdump.sinks.set import SinkSet, part_names
from vmdump.sources.base import LiveSource, Source
from vmdump.writers.kdump import plan_split, write_kdump
from vmdump.writers.tally import Tally

if TYPE_CHECKING:
    from vmdump.opening import Paths

    AnyDump = Paths | Source | Guest

__all__ = ["AnyDump", "ConvertOptions", "convert"]

_MAX_PARTS = 1024
"""Parts are written one after another, but all are open until all are whole."""


class ConvertOptions(TypedDict, total=False):
    """The options of :func:`convert`, which says what they mean."""

    format: str
    layout: str
    split: int | None
    engine: str | None
    level: int | None
    threads: int | None
    vmcoreinfo: bytes | str | os.PathLike[str] | None
    search: bool
    force: bool
    keep_going: bool


def convert(
    source: AnyDump,
    output: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Unpack[ConvertOptions],
) -> Report:
    """Write a dump again in another format or layout, as one file or as a split set.

    Notes, VMCOREINFO, and which pages are excluded go along. Pages of a kdump file that are compressed with
    the codec that is wanted are copied as they are and not packed again; they are not unpacked either, so
    damage inside them goes along, too. With `engine` or `level` every page is packed anew. Damage that
    comes to light is an error, unless `keep_going` leaves it out.

    Parameters
    ----------
    source : str, path, sequence of paths, or Source
        What :func:`open` takes: a dump of any kind, or all parts of a split set; or an open dump.
    output : str or path
        As for :func:`dump`; with `split` the path to which the numbers of the parts are added.
    progress : callable, optional
        Called with (done, total) in bytes of guest memory after each chunk.
    format, layout, engine, level, threads, vmcoreinfo, search, force
        As for :func:`dump`.
    split : int, optional
        Write so many files, 2 or more, ``output.1``, ``output.2`` and so on: a split set of kdump files of
        the standard layout, as ``makedumpfile --split`` makes them. All of them appear, or none.
    keep_going : bool
        Of a dump that is damaged or was cut short, leave out the pages that cannot be read, as
        :func:`vmdump.repair` does: they are excluded, and the output is marked as incomplete. All pages are
        read once more for it.

    Returns
    -------
    Report
        Its `copied_pages` says how many pages were not packed again, its `parts` names the files of a set,
        its `lost_pages` says how many pages could not be read.

    Raises
    ------
    RequestError
        The request contradicts itself.
    EngineUnavailable, CapabilityError
        This build, or this dump, cannot do it.
    SourceError, FormatError, LayoutError, CodecError
        The dump is damaged or cannot be read.
    SinkError, OutputExists
        The output cannot be written.
    """
    control = Control(progress)
    return _check(source, output, control, **options)(control)


def _check(
    source: AnyDump,
    output: str | os.PathLike[str],
    control: Control,
    *,
    format: str = DEFAULT_FORMAT,
    layout: str = "auto",
    split: int | None = None,
    engine: str | None = None,
    level: int | None = None,
    threads: int | None = None,
    vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
    search: bool = True,
    force: bool = False,
    keep_going: bool = False,
) -> Callable[[Control], Report]:
    """Refuse what cannot be done before anything is created; give what does it."""
    names: list[str] = []
    if split is not None:
        if not 2 <= split <= _MAX_PARTS:
            raise RequestError(f"split: {split} is not from 2 to {_MAX_PARTS}", parameter="split")
        if format == "elf" or layout == "flattened":
            raise RequestError(
                "split: only kdump files of the standard layout can be parts of a set", parameter="split"
            )
        names = part_names(output, split)
    guest, owned = _open(source, Checking(check_threads(threads), control) if keep_going else None)
    try:
        request = check_request(
            guest,
            output,
            format=format,
            layout=layout,
            engine=engine,
            level=level,
            threads=threads,
            vmcoreinfo=vmcoreinfo,
            search=search,
            force=force,
            owned=owned,
        )
        if request.engine is None or split is None:
            return request.run
        plan_split(request.vmcoreinfo.without_search(guest.guest), request.engine.codec, split)
        return _Splitting(request, names).run
    except BaseException:
        if owned:
            guest.close()
        raise


def _open(source: AnyDump, checking: Checking | None) -> tuple[Source, bool]:
    live = RequestError("source: a live guest is dumped, not converted", parameter="source")
    if isinstance(source, LiveSource) or names_live_guest(source):
        raise live
    if isinstance(source, Source | Guest):
        if checking is not None:
            raise RequestError(
                "keep_going: goes with the path of a dump, not with one that is open", parameter="keep_going"
            )
        return as_source(source)
    if checking is not None and names_dump(source):
        return open_dump(source, damaged=True, checking=checking), True
    return open_source(source), True


@dataclass(frozen=True)
class _Splitting:
    """A request whose output is a split set."""

    request: Request
    names: list[str]

    def run(self, control: Control) -> Report:
        """Write the parts one after another, each with all threads."""
        began = time.perf_counter()
        request = self.request
        assert request.engine is not None
        tally = Tally()
        try:
            with (
                SinkSet(self.names, force=request.force, cancelled=control.cancelled) as parts,
                request.held(control) as guest,
            ):
                plans = plan_split(guest, request.engine.codec, len(self.names))
                control.start(plans[0].memory_size)
                make_packer = request.packers(guest)
                for output in parts.sinks:
                    output.begin(guest.files)
                for plan, output in zip(plans, parts.sinks, strict=True):
                    tally += write_kdump(
                        guest,
                        plan,
                        output,
                        codec=request.engine.codec,
                        make_packer=make_packer,
                        flatten=False,
                        threads=request.threads,
                        control=control,
                        copies=request.copies(guest),
                    )
            return request.report(
                guest,
                tally,
                name=os.fspath(request.output),
                layout="standard",
                guest_bytes=guest.size,
                seconds=time.perf_counter() - began,
                parts=self.names,
            )
        finally:
            if request.owned:
                request.source.close()
