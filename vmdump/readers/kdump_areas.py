"""What lies in the areas of a kdump file: bitmaps, and page data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmdump.readers.file import ByteFile
from vmdump.sources.base import Pages

__all__ = ["read_bitmap", "read_spans", "zero_page"]

_SPAN_GAP = 4 << 10
"""Page data further apart than this, in bytes, is read with two reads. With larger gaps a batch of pages that
lie here and there, as changed and shared ones do, would take megabytes that nobody wants."""


def read_bitmap(file: ByteFile, offset: int, page_count: int) -> Pages:
    """Read a bitmap; no bit behind `page_count` is set."""
    bitmap = np.empty(-(-page_count // 8), np.uint8)
    file.read_into(offset, bitmap)
    if page_count % 8:
        bitmap[-1] &= (1 << page_count % 8) - 1
    return bitmap


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
