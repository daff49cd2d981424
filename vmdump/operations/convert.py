"""One dump to another: any format to any, and to a split set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypedDict, Unpack

from vmdump.errors import RequestError
from vmdump.formats.levels import parse_level
from vmdump.formats.names import DEFAULT_FORMAT, Format, Layout
from vmdump.guest.guest import Guest
from vmdump.opening import as_source, names_dump, names_live_guest, open_dump, open_source
from vmdump.operations.report import Report
from vmdump.operations.request import Request, Target, check_keywords, make_request
from vmdump.pipeline.control import Control
from vmdump.pipeline.workers import check_threads
from vmdump.sources.base import LiveSource, Source
from vmdump.writers.registry import make_writer

if TYPE_CHECKING:
    from vmdump.codecs.registry import EngineName
    from vmdump.opening import Paths
    from vmdump.readers.checking import Checking

    AnyDump = Paths | Source | Guest

__all__ = ["AnyDump", "ConvertOptions", "check_conversion", "convert"]

_MAX_PARTS = 1024
"""Parts are written one after another, but all are open until all are whole."""


class ConvertOptions(TypedDict, total=False):
    """The options of :func:`convert`, which says what they mean."""

    format: Format
    layout: Layout
    split: int | None
    engine: EngineName | None
    level: int | None
    threads: int | None
    vmcoreinfo: bytes | str | os.PathLike[str] | None
    search: bool
    force: bool
    keep_going: bool
    exclude: int | str | Iterable[str]
    keep_partial: bool


def convert(
    source: AnyDump,
    output: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Unpack[ConvertOptions],
) -> Report:
    """Write a dump again in another format or layout, as one file or as a split set.

    Notes, VMCOREINFO, and which pages are excluded go along. Pages of a kdump file that are compressed with
    the codec that is wanted are copied as they are stored; they are not unpacked either, so damage inside
    them goes along, too. With `engine` or `level` every page is packed anew. Damage that comes to light is
    an error, unless `keep_going` excludes it.

    What `exclude` leaves out is neither read nor unpacked. For zeros no stored page is unpacked either: in a
    kdump file zero pages are in the second bitmap, whatever the level.

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
        Exclude the lost pages of a dump that is damaged or was cut short, as :func:`vmdump.repair` does, and
        mark the output as incomplete. All pages are read once more for it.
    keep_partial : bool
        As for :func:`dump`; of a split set, each file of which something was written gets that name.
    exclude : int, str, or iterable of str
        As for :func:`dump`. What the dump lacks already stays excluded: levels add up.

    Returns
    -------
    Report
        Its `copied_pages` says how many pages were not packed again, its `parts` names the files of a set,
        its `lost_pages` says how many pages were lost.

    Raises
    ------
    TypeError
        There is no such keyword.
    RequestError
        The request contradicts itself.
    EngineUnavailable, CapabilityError
        This build or this dump does not support it.
    SourceError, FormatError, LayoutError, CodecError
        The dump is damaged, or reading it failed.
    SinkError, OutputExists
        Writing the output failed.
    """
    check_keywords("vmdump.convert", options, {*ConvertOptions.__annotations__, "progress"})
    control = Control(progress)
    return check_conversion(source, output, control, **options).run(control)


def check_conversion(
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
    exclude: int | str | Iterable[str] = 1,
    keep_partial: bool = False,
) -> Request:
    """Open the dump and check the request, before anything is created; parameters as for :func:`convert`.

    Raises
    ------
    VmdumpError
        As for :func:`convert`.
    """
    parts: list[str] = []
    if split is not None:
        if not 2 <= split <= _MAX_PARTS:
            raise RequestError(f"split: {split} is not from 2 to {_MAX_PARTS}", parameter="split")
        from vmdump.sinks.set import part_names  # few dumps are split

        parts = part_names(output, split)
    left_out = parse_level(exclude)
    writer = make_writer(format, layout=layout, engine=engine, level=level)
    if parts:
        writer.check_split()
    threads = check_threads(threads)
    checking = None
    if keep_going:
        from vmdump.readers.checking import Checking  # few dumps are damaged

        checking = Checking(threads, control)
    target = Target(
        output=output,
        format=format,
        writer=writer,
        threads=threads,
        force=force,
        parts=parts,
        exclude=left_out,
        keeps=keep_partial,
    )
    return make_request(lambda: _open(source, checking), target, vmcoreinfo=vmcoreinfo, search=search)


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
