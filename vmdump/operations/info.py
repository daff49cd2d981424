"""What a dump is: its format, who made it, the guest, and how it holds the pages."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vmdump.errors import FormatError, SourceError
from vmdump.formats.notes import count_cpus, is_fuzzy, iter_notes
from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import TOLD_OR_FOUND
from vmdump.guest.whole import count_pages, data_runs, partial_pages
from vmdump.opening import opened_in_part
from vmdump.readers.dump import Dump
from vmdump.readers.kinds import PageKind, name_kinds
from vmdump.units import counted, format_size, merge_runs

if TYPE_CHECKING:
    from vmdump.guest.qemu import LiveFacts
    from vmdump.opening import AnySource

__all__ = ["DumpInfo", "VmcoreinfoPlace", "info"]

_WINDOW = 1 << 20
"""Pages whose kinds are asked for together."""


@dataclass(frozen=True)
class VmcoreinfoPlace:
    """A VMCOREINFO in a guest's memory.

    Attributes
    ----------
    number : int
        ``found:N`` names it.
    address : int
        Guest-physical.
    osrelease : str
        The kernel's release.
    crashtime : int or None
        Seconds since 1970 at which it crashed; None if it did not.
    verdict : str
        ``right`` if that kernel is in memory, ``wrong`` if not, ``unknown`` if nothing tells.
    cpus : int
        vCPUs that are in that kernel.
    chosen : bool
        It is taken for the guest's.
    """

    number: int
    address: int
    osrelease: str
    crashtime: int | None
    verdict: str
    cpus: int
    chosen: bool


@dataclass(frozen=True)
class DumpInfo:
    """What :func:`info` found.

    Attributes
    ----------
    format : str
        As of :class:`vmdump.readers.dump.Dump`; ``raw``, ``buffers``, ``synthetic`` or ``live guest of QEMU``
        where it is not a dump.
    maker : str
        The program that wrote it, as far as the file gives it away, or that runs the guest; empty where
        nothing tells.
    incomplete : bool
        Its maker, or ``vmdump repair``, marked it as lacking pages that it should have, or it does not open
        as a whole.
    fuzzy : bool
        The guest ran while it was dumped.
    file_bytes : int
        Size of the files.
    compression : str
        Codec of a kdump file; empty for others.
    arch : str
        The guest's architecture.
    bits : int
        Of that architecture, 32 or 64. The file of a 32-bit guest may be a 64-bit one.
    byteorder : str
        ``little`` or ``big``.
    page_size : int
        Bytes.
    cpus : int
        vCPUs.
    phys_base : int
        As of :class:`vmdump.guest.guest.Guest`.
    utsname : dict of str to str
        The guest's names.
    guest_bytes, excluded_bytes : int
        Guest memory, and the part of it that is excluded from the dump.
    blocks : tuple of (int, int)
        Guest-physical ranges ``[begin, end)`` of memory; those that touch are one.
    pages : int
        Pages of the guest.
    partial_pages : int
        Those of which it has only a part, because memory ends inside them.
    kinds : dict of str to int
        How the dump holds them: names of :class:`vmdump.readers.kinds.PageKind` in lower case that come up.
        Empty where the source is not a dump.
    notes : dict of str to int
        Number of notes by name.
    vmcoreinfo : dict of str to str
        VMCOREINFO's lines.
    vmcoreinfo_found : tuple of VmcoreinfoPlace
        Where it, and that of other kernels, was found in memory, ascending; empty where nothing was looked
        for, because the guest tells it.
    written : float or None
        When its files were last written to, in seconds since 1970: when the dump was made, if it is no copy
        that has a time of its own. None where it has no files, and for a live guest.
    live : LiveFacts or None
        How a live guest was found; None of anything else.
    damaged_pages : int
        Pages whose descriptors are invalid, or, of a dump that does not open as a whole, those that are lost.
        Neither `kinds` nor `excluded_bytes` counts them.
    damage : str
        Why the dump does not open as a whole, or not all notes are counted; empty where nothing is wrong.
    """

    format: str
    maker: str
    incomplete: bool
    fuzzy: bool
    file_bytes: int
    compression: str
    arch: str
    bits: int
    byteorder: str
    page_size: int
    cpus: int
    phys_base: int
    utsname: dict[str, str]
    guest_bytes: int
    excluded_bytes: int
    blocks: tuple[tuple[int, int], ...]
    pages: int
    partial_pages: int
    kinds: dict[str, int]
    notes: dict[str, int]
    vmcoreinfo: dict[str, str]
    damaged_pages: int
    damage: str
    vmcoreinfo_found: tuple[VmcoreinfoPlace, ...] = ()
    written: float | None = None
    live: LiveFacts | None = None

    def _repr_html_(self) -> str:
        """Give a table for a notebook."""
        from vmdump.markup import facts_table

        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        marks = [name for name, on in (("incomplete", self.incomplete), ("fuzzy", self.fuzzy)) if on]
        found = self.live
        rows = [
            ("state", f"{found.state}, process {found.process}, {found.path}" if found else ""),
            ("made by" if found is None else "run by", self.maker),
            ("damaged", self.damage),
            ("marked", ", ".join(marks)),
            ("file", format_size(self.file_bytes) if self.file_bytes and not found else ""),
            ("guest", f"{self.arch}, {self.bits}-bit, {self.byteorder}-endian, {counted(self.cpus, 'vCPU')}"),
            ("system", " ".join(name for name in self.utsname.values() if name)),
            ("memory", f"{format_size(self.guest_bytes)} in {counted(len(self.blocks), 'block')}"),
            ("pages", f"{self.pages} of {self.page_size} bytes{': ' if kinds else ''}{kinds}"),
            ("VMCOREINFO", counted(len(self.vmcoreinfo), "line") if self.vmcoreinfo else "none"),
        ]
        title = self.format + (f", {self.compression}" if self.compression else "")
        return facts_table(title, (row for row in rows if row[1]))

    def as_dict(self) -> dict[str, Any]:
        """Give all attributes by name, for JSON."""
        return asdict(self)


def info(
    source: AnySource, *, search: bool = True, progress: Callable[[int, int], object] | None = None
) -> DumpInfo:
    """Tell what a dump is.

    Page descriptors are read; pages only to look for a VMCOREINFO that the dump does not tell.

    Of a dump that is damaged or was cut short, it tells what is left, and how much is lost.

    Parameters
    ----------
    source : str, path, sequence of paths, Source, buffer, or list of blocks
        A dump, or whatever else :func:`vmdump.dump` takes.
    search : bool
        Look for VMCOREINFO.
    progress : callable, optional
        Called with (done, total) in bytes of memory, if that takes longer than a second.

    Raises
    ------
    VmdumpError
        It cannot be opened, not even in part.
    """
    with opened_in_part(source, search=search, progress=progress) as (source_itself, damage):
        guest = _searched(source_itself)
        notes, notes_damage = _notes(guest)
        blocks = tuple(merge_runs((block.start, block.end) for block in guest.blocks))
        pages = count_pages(guest.blocks, guest.page_size)
        kinds, damaged = _count_kinds(guest, pages) if isinstance(guest, Dump) else ({}, 0)
        lost = guest.lost_pages * guest.page_size
        return DumpInfo(
            format=guest.format,
            maker=guest.maker,
            incomplete=guest.incomplete,
            fuzzy=is_fuzzy(notes, guest.byteorder),
            file_bytes=sum(os.fstat(file.fd).st_size for file in guest.files),
            compression=guest.compression,
            arch=guest.arch.name,
            bits=guest.arch.elf_class,
            byteorder=guest.byteorder,
            page_size=guest.page_size,
            cpus=count_cpus(notes, guest.byteorder) or 1 if notes_damage else guest.nr_cpus,
            phys_base=guest.phys_base,
            utsname={name: _text(value) for name, value in guest.utsname._asdict().items()},
            guest_bytes=guest.size,
            excluded_bytes=max(guest.excluded_size - lost, 0),
            blocks=blocks,
            pages=pages,
            partial_pages=len(partial_pages(guest.blocks, guest.page_size)),
            kinds=kinds,
            notes=dict(Counter(_text(note.name) for note in iter_notes(notes, guest.byteorder))),
            vmcoreinfo=dict(guest.vmcoreinfo),
            vmcoreinfo_found=tuple(_places(guest)),
            damaged_pages=damaged,
            damage=damage or notes_damage,
            written=_written(guest),
            live=guest.live,
        )


def _searched(source: Guest) -> Guest:
    try:
        return TOLD_OR_FOUND.at_once(source)
    except SourceError:
        if source.qemu is not None:
            raise
        return source.without_search()  # a disk with a bad sector; the headers were read


def _written(guest: Guest) -> float | None:
    if guest.live is not None:
        return None
    return max((os.fstat(file.fd).st_mtime for file in guest.files), default=None)


def _places(guest: Guest) -> Iterator[VmcoreinfoPlace]:
    for number, found in enumerate(guest.searched.findings or (), 1):
        yield VmcoreinfoPlace(
            number,
            found.address,
            found.lines.get("OSRELEASE", ""),
            found.crash_time,
            found.verdict,
            found.cpus,
            found is guest.told.found,
        )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _notes(guest: Guest) -> tuple[bytes, str]:
    """Give the notes in front of the first one that is damaged, and what is wrong with that."""
    end = 0
    try:
        for note in iter_notes(guest.notes, guest.byteorder, path=getattr(guest, "path", "")):
            end = note.end
    except FormatError as error:
        return guest.notes[:end], str(error)
    return guest.notes, ""


def _count_kinds(dump: Dump, pages: int) -> tuple[dict[str, int], int]:
    """Count the pages by kind, and those that are damaged."""
    counts = np.zeros(len(PageKind), np.int64)
    damaged = 0
    for begin, end in merge_runs(data_runs(dump.blocks, dump.page_size)):
        first, last = begin // dump.page_size, end // dump.page_size
        for pfn in range(first, last, _WINDOW):
            kinds, bad = dump.kinds_and_damage(pfn, min(_WINDOW, last - pfn))
            counts += np.bincount(kinds, minlength=len(PageKind))
            damaged += int(np.count_nonzero(bad))
    named = name_kinds(counts, pages, dump.excluded_size // dump.page_size, damaged)
    excluded = named.pop("excluded", 0) - dump.lost_pages
    return named | ({"excluded": excluded} if excluded > 0 else {}), damaged + dump.lost_pages
