"""What lies in the areas of a kdump file: bitmaps, page descriptors, and page data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError
from vmdump.formats import kdump
from vmdump.guest.blocks import Pages
from vmdump.readers.bytes.file import ByteFile
from vmdump.readers.kinds import PageKind

__all__ = ["KINDS", "KdumpPart", "KdumpTable", "check_table", "read_spans", "zero_page"]

KINDS = {0: PageKind.PLAIN} | {flag: PageKind[codec.upper()] for codec, flag in kdump.CODEC_FLAGS.items()}
"""Kinds of pages by the flags of their descriptors."""

_SPAN_GAP = 4 << 10
"""Page data further apart than this, in bytes, is read with two reads. With larger gaps a batch of pages that
lie here and there, as changed and shared ones do, would take megabytes that nobody wants."""


@dataclass(frozen=True)
class KdumpPart:
    """The file that holds the pages ``[begin, end)``: the only one, or one of a split set.

    Attributes
    ----------
    file : ByteFile
        Its standard layout.
    begin, end : int
        Frame numbers.
    rank : int
        Pages in the dump in front of `begin`.
    table : int
        Offset of the descriptor of the first page.
    zero : int
        Offset of the page that zero pages share, or -1.
    base : int
        Bytes of the files before this one.
    """

    file: ByteFile
    begin: int
    end: int
    rank: int
    table: int
    zero: int
    base: int


@dataclass(frozen=True)
class KdumpTable:
    """The pages of one batch that are in the dump, by their descriptors, which were checked.

    Attributes
    ----------
    present : (n,) bool
        Which pages of the batch; the other arrays are of these.
    offsets, sizes, flags : (k,) uint64, uint32, uint32
        Fields of the descriptors.
    zero : (k,) bool
        The shared zero page.
    """

    present: NDArray[np.bool_]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    flags: NDArray[np.uint32]
    zero: NDArray[np.bool_]


def zero_page(file: ByteFile, offset: int, size: int) -> int:
    """Give the offset of the page there if it is zero, else -1."""
    if size > file.size - offset:
        return -1
    page = np.empty(size, np.uint8)
    file.read_into(offset, page)
    return -1 if page.any() else offset


def read_spans(
    file: ByteFile, offsets: NDArray[np.uint64], sizes: NDArray[np.uint32]
) -> tuple[Pages, NDArray[np.uint64]]:
    """Read the data of pages in few reads; give it and the place of each page in it."""
    if not len(offsets):
        return np.empty(0, np.uint8), np.empty(0, np.uint64)
    order = np.argsort(offsets, kind="stable")
    begins = offsets[order].astype(np.int64)
    ends = np.maximum.accumulate(begins + sizes[order])
    cuts = np.flatnonzero(begins[1:] > ends[:-1] + _SPAN_GAP) + 1
    firsts = np.concatenate(([0], cuts))
    span_begins = begins[firsts]
    span_ends = ends[np.concatenate((cuts, [len(begins)])) - 1]
    span_places = np.concatenate(([0], np.cumsum(span_ends - span_begins)))
    data = np.empty(int(span_places[-1]), np.uint8)
    for begin, low, high in zip(span_begins, span_places[:-1], span_places[1:], strict=True):
        file.read_into(int(begin), data[low:high])
    span_of = np.searchsorted(span_begins, offsets.astype(np.int64), side="right") - 1
    places = span_places[span_of] + (offsets.astype(np.int64) - span_begins[span_of])
    return data, places.astype(np.uint64)


def check_table(
    file: ByteFile,
    pfn: int,
    present: NDArray[np.bool_],
    rows: NDArray[np.void],
    page_size: int,
    zero_offset: int,
    damage: dict[int, str] | NDArray[np.bool_] | None,
) -> KdumpTable:
    """Check the descriptors of pages from `pfn` on.

    Parameters
    ----------
    file : ByteFile
        That the pages are in.
    pfn : int
        Frame number of the first page of the batch.
    present : (n,) bool
        Which pages of it are in the dump.
    rows : (k,) of PAGE_DESCRIPTOR
        Of these.
    page_size : int
        Bytes.
    zero_offset : int
        Of the page that zero pages share, or -1.
    damage : dict of int to str, (n,) bool, or None
        Pages with invalid descriptors are skipped, and go there: with the reason, or as a mark.

    Raises
    ------
    FormatError
        A descriptor is invalid, and `damage` is not given.
    """
    offsets = rows["offset"].astype(np.uint64)
    sizes = rows["size"].astype(np.uint32)
    flags = rows["flags"].astype(np.uint32)
    bad = (sizes == 0) | (sizes > page_size) | (offsets > file.size)
    bad |= offsets + sizes > file.size
    bad |= (flags == 0) & (sizes != page_size)
    bad |= ~np.isin(flags, list(KINDS))
    if bad.any():
        there = np.flatnonzero(present)
        if isinstance(damage, np.ndarray):
            damage[there[bad]] = True
        for index in () if isinstance(damage, np.ndarray) else np.flatnonzero(bad).tolist():
            page = pfn + int(there[index])
            error = _wrong(file, page, int(offsets[index]), int(sizes[index]), int(flags[index]))
            if damage is None:
                raise error
            damage[page] = str(error)
        present = present.copy()
        present[there[bad]] = False
        offsets, sizes, flags = offsets[~bad], sizes[~bad], flags[~bad]
    zero = (flags == 0) & (offsets == np.uint64(max(zero_offset, 0))) & (zero_offset >= 0)
    return KdumpTable(present, offsets, sizes, flags, zero)


def _wrong(file: ByteFile, pfn: int, offset: int, size: int, flags: int) -> FormatError:
    """Say what is wrong with the descriptor of a page."""
    text = f"the descriptor of page {pfn:#x} says {size} bytes at {offset:#x}"
    if offset + size > file.size:
        text += f", the file ends at {file.size:#x}: it is cut short or damaged"
    elif flags not in KINDS:
        text = f"the flags {flags:#x} of page {pfn:#x} name no codec"
    return FormatError(f"{text}, see 'vmdump repair'", path=file.path)
