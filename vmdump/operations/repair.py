"""Make an intact dump of what is left of a damaged one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vmdump.formats.names import DEFAULT_FORMAT
from vmdump.guest.whole import count_pages
from vmdump.opening import open_dump
from vmdump.operations.dump import check_request
from vmdump.operations.report import Report
from vmdump.pipeline.control import Control
from vmdump.pipeline.workers import check_threads
from vmdump.readers.bytes.file import naming_file
from vmdump.readers.checking import Checking

if TYPE_CHECKING:
    from vmdump.opening import Paths

__all__ = ["Repair", "repair"]


@dataclass(frozen=True)
class Repair:
    """What :func:`repair` did.

    Attributes
    ----------
    kept_pages, lost_pages : int
        Pages of the damaged dump that are in the output, and those that are lost; where a kdump file has lost
        the bitmap of its pages, too, all other pages of the guest.
    incomplete : bool
        The output is marked as incomplete. It is not if nothing at all was lost.
    report : Report
        About the output.
    """

    kept_pages: int
    lost_pages: int
    incomplete: bool
    report: Report

    def as_dict(self) -> dict[str, Any]:
        """Give everything as JSON has it."""
        return asdict(self)


def repair(
    damaged: Paths,
    output: str | os.PathLike[str],
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Repair:
    """Write all intact pages of a dump that was cut short or has lost parts.

    The output has the format and the codec of the damaged dump; pages are copied as they are stored. What is
    lost counts as excluded, and the output is marked: 0x8 in the status of a kdump header, bit 0 of an
    ELF header's e_flags.

    Parameters
    ----------
    damaged : str, path, or sequence of paths
        A kdump file in either layout, a flattened one also without its end mark; the parts of a split set in
        any order, some of which may be missing; an ELF core; or a LiME or AVML file, as a kdump file.
    output : str or path
        As for :func:`vmdump.dump`.
    threads : int, optional
        Worker threads; the processors this process may use, if not given.
    force : bool
        Replace an output file that is there.
    progress : callable, optional
        Called with (done, total) in bytes of guest memory.

    Returns
    -------
    Repair

    Raises
    ------
    FormatError, LayoutError
        It is not such a file, or has lost even its headers.
    SourceError, SinkError, OutputExists
        It cannot be read, or the output cannot be written.
    """
    control = Control(progress)
    checking = Checking(check_threads(threads), control)
    with open_dump(damaged, damaged=True, checking=checking) as source, naming_file(source.path):
        codec = source.codec
        name = f"kdump-{codec}" if codec else "elf" if source.format == "elf" else DEFAULT_FORMAT
        request = check_request(source, output, format=name, threads=threads, force=force)
        report = request.run(control)
        kept = count_pages(source.blocks, source.page_size) - source.excluded_size // source.page_size
        return Repair(kept, source.lost_pages, source.incomplete, report)
