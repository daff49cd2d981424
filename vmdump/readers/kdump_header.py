"""The headers of a kdump-compressed file of any version, checked against the file that they are in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmdump.errors import CapabilityError, FormatError
from vmdump.formats import kdump
from vmdump.formats.elf import ElfClass
from vmdump.formats.layout import ByteOrder, Layout
from vmdump.guest.blocks import MAX_PAGE_SIZE, MIN_PAGE_SIZE
from vmdump.guest.linux.utsname import UTS_FIELD, Utsname
from vmdump.readers.bytes.file import ByteFile, most_notes
from vmdump.units import is_power_of_two

__all__ = ["KdumpHeaders", "read_area", "read_headers", "sort_parts"]

_ORDERS: tuple[ByteOrder, ...] = ("little", "big")
_CLASSES: tuple[ElfClass, ...] = (64, 32)
_MAX_BITMAP_HOLE = 4 << 30
"""Bytes that one bitmap may have in any file: 128 TiB of addresses, looked through in 2 s. More have to be in
the file, not in a hole."""


@dataclass(frozen=True)
class KdumpHeaders:
    """What a kdump file says in front of its bitmaps.

    Attributes
    ----------
    elf_class : int
        32 or 64.
    byteorder : str
        ``little`` or ``big``.
    header, sub_header : dict
        The fields that this version has, under the names of the format.
    max_mapnr : int
        The pages end here.
    begin_pfn, end_pfn : int
        The pages in this part of a split set; all pages, if the file is not a part.
    bitmap_offsets : (int, int)
        Of the bitmap of the guest's memory, and of that of the pages in the dump; they are one in files that
        have only one.
    descriptors_offset : int
        Of the first page descriptor.
    notes : bytes
        ELF notes.
    vmcoreinfo : bytes
        Text of VMCOREINFO, empty where the header does not point at one.
    """

    elf_class: ElfClass
    byteorder: ByteOrder
    header: dict[str, Any]
    sub_header: dict[str, Any]
    max_mapnr: int
    begin_pfn: int
    end_pfn: int
    bitmap_offsets: tuple[int, int]
    descriptors_offset: int
    notes: bytes
    vmcoreinfo: bytes

    @property
    def version(self) -> int:
        """Header version, 1 to 6."""
        version: int = self.header["header_version"]
        return version

    @property
    def block_size(self) -> int:
        """Bytes of a page."""
        size: int = self.header["block_size"]
        return size

    @property
    def utsname(self) -> bytes:
        """The names as they lie in the file, `UTS_FIELD` bytes each."""
        return b"".join(self.header[name].ljust(UTS_FIELD, b"\0") for name in Utsname._fields)

    @property
    def split(self) -> bool:
        """True for one part of a split set."""
        return bool(self.sub_header.get("split", 0))


def read_headers(file: ByteFile) -> KdumpHeaders:
    """Read and check the headers of a kdump file.

    Raises
    ------
    FormatError
        They contradict themselves, or claim what the file does not hold.
    """
    elf_class, byteorder, header = _read_header(file)
    block_size = header["block_size"]
    second = _read_sub_header(file, elf_class, byteorder, header)
    bitmaps = (kdump.HEADER_BLOCKS + header["sub_hdr_size"]) * block_size
    room = header["bitmap_blocks"] * block_size
    max_mapnr = second.get("max_mapnr_64", 0)
    if not 0 < max_mapnr <= 8 * room:  # there is none before version 6, or it is damaged
        max_mapnr = header["max_mapnr"]
    needed = -(-max_mapnr // 8)
    if needed > room:
        raise FormatError("the bitmaps are too small for max_mapnr", path=file.path, offset=block_size)
    if bitmaps + room > file.size:
        raise FormatError("the bitmaps end behind the end of the file", path=file.path, offset=bitmaps)
    if needed > max(_MAX_BITMAP_HOLE, file.allocated):
        raise FormatError(
            f"a bitmap of {needed} bytes is more than the file holds", path=file.path, offset=bitmaps
        )
    # crash's rule: the second half is a bitmap of its own if both halves hold all pages.
    two = header["bitmap_blocks"] >= 2 * -(-needed // block_size)
    begin, end = 0, max_mapnr
    if second.get("split"):
        wide = "_64" if "start_pfn_64" in second else ""
        begin, end = second[f"start_pfn{wide}"], second[f"end_pfn{wide}"]
        if not begin <= end <= max_mapnr:
            raise FormatError(
                f"a part of a split set claims the pages {begin:#x} to {end:#x} of {max_mapnr:#x}",
                path=file.path,
                offset=block_size,
            )
    return KdumpHeaders(
        elf_class,
        byteorder,
        header,
        second,
        max_mapnr,
        begin,
        end,
        (bitmaps, bitmaps + room // 2 if two else bitmaps),
        bitmaps + room,
        read_area(file, second, "note"),
        read_area(file, second, "vmcoreinfo"),
    )


def _read_header(file: ByteFile) -> tuple[ElfClass, ByteOrder, dict[str, Any]]:
    """Find class and byte order by which the numbers make sense."""
    raw = file.read(0, min(MIN_PAGE_SIZE, file.size))
    versions = set()
    for byteorder in _ORDERS:
        for elf_class in _CLASSES:
            header = kdump.HEADER[elf_class].unpack(raw, 0, byteorder, path=file.path)
            version, block_size = header["header_version"], header["block_size"]
            if not 1 <= version <= kdump.HEADER_VERSION:
                continue
            versions.add(version)
            if not is_power_of_two(block_size) or not MIN_PAGE_SIZE <= block_size <= MAX_PAGE_SIZE:
                continue
            if header["sub_hdr_size"] > 0 and header["bitmap_blocks"] > 0:
                return elf_class, byteorder, header
    found = f"version {versions.pop()}" if versions else "an unknown version"
    raise FormatError(f"the kdump header has {found}, and invalid block sizes", path=file.path, offset=8)


def _read_sub_header(
    file: ByteFile, elf_class: ElfClass, byteorder: ByteOrder, header: dict[str, Any]
) -> dict[str, Any]:
    """Read the fields that the header's version has, in the form in which they make sense."""
    forms: tuple[kdump.SubHeaderForm, ...] = ("64",) if elf_class == 64 else ("32 packed", "32 padded")
    version, begin = header["header_version"], kdump.HEADER_BLOCKS * header["block_size"]
    best, found = -1, None
    for form in forms:
        declared = kdump.SUB_HEADER[form]
        layout = Layout(declared.name, tuple(field for field in declared.fields if field.since <= version))
        second = layout.unpack(file.read(begin, layout.size), 0, byteorder, path=file.path)
        sense = 0 if elf_class == 64 else _sense(second, header, file.size)
        if sense > best:
            best, found = sense, second
    if found is None:
        raise FormatError(
            "no form of the sub-header has offsets inside the file and the header's max_mapnr",
            path=file.path,
            offset=begin,
        )
    return found


def _sense(second: dict[str, Any], header: dict[str, Any], file_size: int) -> int:
    """Count the plausible fields in one form of a sub-header, packed or padded; -1 if one is impossible.

    Version 6 repeats the header's 32-bit max_mapnr; before, only where offsets point tells.
    """
    if "max_mapnr_64" in second and min(second["max_mapnr_64"], 0xFFFFFFFF) != header["max_mapnr"]:
        return -1
    area = kdump.HEADER_BLOCKS * header["block_size"]
    sense = 0
    for name in ("vmcoreinfo", "note", "eraseinfo"):
        begin, size = second.get(f"offset_{name}", 0), second.get(f"size_{name}", 0)
        if size and not (area < begin <= begin + size <= file_size):
            return -1
        if begin and not size and name == "vmcoreinfo":
            return -1  # padding, or half a number, read as an offset
        sense += size > 0
    return sense


def read_area(file: ByteFile, second: dict[str, Any], name: str) -> bytes:
    """Read what the sub-header points at: ``note``, ``vmcoreinfo`` or ``eraseinfo``; empty for nothing.

    Raises
    ------
    FormatError
        It is not inside the file.
    """
    begin, size = second.get(f"offset_{name}", 0), second.get(f"size_{name}", 0)
    if not begin or not size:
        return b""
    if size > most_notes(file) or begin + size > file.size:
        raise FormatError(
            f"{size} bytes of {name} at {begin:#x} are not inside the file",
            path=file.path,
            offset=kdump.HEADER_BLOCKS,
        )
    return file.read(begin, size)


def sort_parts(
    parts: list[tuple[ByteFile, KdumpHeaders]], *, complete: bool = True
) -> list[tuple[ByteFile, KdumpHeaders]]:
    """Demand one whole file, or all parts of one split set, and give them in the order of their pages.

    Parameters
    ----------
    parts : list of (ByteFile, KdumpHeaders)
        In any order.
    complete : bool
        Demand that no part is missing.

    Raises
    ------
    FormatError
        The files are not of one set, or two hold the same pages.
    CapabilityError
        Pages of the set are in none of the files.
    """
    first_file, first = parts[0]
    for file, headers in parts[1:]:
        if not (first.split and headers.split) or _shared(headers) != _shared(first):
            raise FormatError(f"this is not a part of the split set of {first_file.path}", path=file.path)
    if complete and sum(file.size for file, _ in parts) > 1 << 63:
        raise FormatError("the parts are larger than any file", path=first_file.path)
    parts = sorted(parts, key=lambda part: (part[1].begin_pfn, part[1].end_pfn))
    reached = 0
    ranges = [(file, headers.begin_pfn, headers.end_pfn) for file, headers in parts]
    for file, begin, end in [*ranges, (first_file, first.max_mapnr, first.max_mapnr)]:
        if begin < reached:
            raise FormatError(f"the pages from {begin:#x} on are in another part, too", path=file.path)
        if begin > reached and complete:
            raise CapabilityError(
                f"{first_file.path}: of this split set the pages {reached:#x} to {begin:#x} are missing; "
                "open all of its parts together; 'vmdump repair' does without them"
            )
        reached = end
    return parts


def _shared(headers: KdumpHeaders) -> object:
    """Give what the parts of a set have in common: all but ranges, what was erased in these, and the mark."""
    own = ("start_pfn", "end_pfn", "start_pfn_64", "end_pfn_64", "offset_eraseinfo", "size_eraseinfo")
    second = {name: value for name, value in headers.sub_header.items() if name not in own}
    header = {**headers.header, "status": headers.header["status"] & ~kdump.STATUS_INCOMPLETE}
    return headers.elf_class, headers.byteorder, header, second
