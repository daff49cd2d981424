"""kdump-compressed files of header version 6 as guests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import arch_by_uts_machine
from vmdump.errors import CapabilityError, CodecError, FormatError
from vmdump.formats import kdump
from vmdump.formats.elf import ElfClass
from vmdump.formats.layout import ByteOrder
from vmdump.kernels.bits import count, runs
from vmdump.kernels.engines import PageUnpacker, make_unpacker
from vmdump.readers.dump import Dump
from vmdump.readers.file import ByteFile
from vmdump.sources.base import MAX_PAGE_SIZE, MIN_PAGE_SIZE, Block, Pages, Utsname
from vmdump.units import is_power_of_two

__all__ = ["KdumpDump"]

_RANK_WINDOW = 1 << 15
"""Bits of the bitmap between two counts that are kept."""
_SPAN_GAP = 4 << 10
"""Page data further apart than this, in bytes, is read with two reads. With larger gaps a batch of pages that
lie here and there, as changed and shared ones do, would take megabytes that nobody wants."""
_BATCH = 1024
"""Pages decompressed in one call."""
_ORDERS: tuple[ByteOrder, ...] = ("little", "big")
_CLASSES: tuple[ElfClass, ...] = (64, 32)


class KdumpDump(Dump):
    """A kdump-compressed file.

    Parameters
    ----------
    file : ByteFile
        Its standard layout; owned from now on.
    layout : {"standard", "flattened"}
        How it lies in the file.

    Raises
    ------
    FormatError
        An offset, size or count of the headers is wrong.
    CapabilityError
        The header version is not 6, or the file is one part of a split dump.
    """

    def __init__(self, file: ByteFile, layout: str) -> None:
        self._file = file
        self.files = (file.plain,)
        self.format = f"kdump {layout}"
        elf_class, byteorder, header = _read_header(file)
        block_size = header["block_size"]
        second = _read_sub_header(file, elf_class, byteorder, header)
        self.header, self.sub_header = header, second
        bitmap_begin = (kdump.HEADER_BLOCKS + header["sub_hdr_size"]) * block_size
        bitmap_bytes = header["bitmap_blocks"] * block_size // 2
        if second["max_mapnr_64"] > 8 * bitmap_bytes:
            raise FormatError("the bitmaps are too small for max_mapnr", path=file.path, offset=block_size)
        self._bitmap = np.frombuffer(file.read(bitmap_begin + bitmap_bytes, bitmap_bytes), np.uint8)
        self._ranks = _ranks(self._bitmap)
        self._descriptors_offset = bitmap_begin + 2 * bitmap_bytes
        self._descriptor = kdump.PAGE_DESCRIPTOR.dtype(byteorder)
        if self._descriptors_offset + int(self._ranks[-1]) * self._descriptor.itemsize > file.size:
            raise FormatError(
                f"{self._ranks[-1]} page descriptors do not fit into the file",
                path=file.path,
                offset=self._descriptors_offset,
            )
        self._spare: dict[str, list[PageUnpacker]] = {codec: [] for codec in kdump.CODEC_FLAGS}
        present = runs(self._bitmap, 0, 8 * bitmap_bytes)
        super().__init__(
            [
                Block(int(first) * block_size, _KdumpMemory(self, block_size, int(first), int(end - first)))
                for first, end in present
            ],
            arch_by_uts_machine(header["machine"].decode("ascii", "replace"), elf_class, byteorder),
            byteorder=byteorder,
            elf_class=elf_class,
            page_size=block_size,
            notes=file.read(second["offset_note"], second["size_note"]),
        )
        self.utsname = Utsname(**{field.name: header[field.name] for field in fields(Utsname)})

    def descriptors(self, pfn: int, length: int) -> NDArray[np.void]:
        """Give the page descriptors of pages that are all in the dump.

        Returns
        -------
        (length,) structured
            Fields offset, size, flags, page_flags in the file's byte order.
        """
        window = pfn // _RANK_WINDOW
        rank = int(self._ranks[window]) + count(self._bitmap, window * _RANK_WINDOW, pfn)
        size = self._descriptor.itemsize
        return np.frombuffer(
            self._file.read(self._descriptors_offset + rank * size, length * size), self._descriptor
        )

    def read_pages(self, pfn: int, out: Pages) -> None:
        """Decompress consecutive pages into ``(count, page_size)`` `out`; all must be in the dump."""
        for begin in range(0, len(out), _BATCH):
            self._read_batch(pfn + begin, out[begin : begin + _BATCH])

    def _read_batch(self, pfn: int, out: Pages) -> None:
        table = self.descriptors(pfn, len(out))
        offsets = table["offset"].astype(np.uint64)
        sizes = table["size"].astype(np.uint32)
        flags = table["flags"].astype(np.uint32)
        bad = (sizes == 0) | (sizes > self.page_size) | (offsets > self._file.size)
        bad |= offsets + sizes > self._file.size
        if bad.any():
            index = int(bad.argmax())
            raise FormatError(
                f"page {pfn + index:#x} is said to be {sizes[index]} bytes at {offsets[index]:#x}",
                path=self._file.path,
            )
        data, places = self._read_spans(offsets, sizes)
        for flag in np.unique(flags):
            codec = "none" if flag == 0 else kdump.FLAG_CODECS.get(int(flag))
            if codec is None:
                raise FormatError(f"page flags {flag:#x} name no codec", path=self._file.path)
            chosen = np.flatnonzero(flags == flag)
            self._unpack(codec, pfn, chosen, data, places, sizes, out)

    def _unpack(
        self,
        codec: str,
        pfn: int,
        chosen: NDArray[np.intp],
        data: Pages,
        places: NDArray[np.uint64],
        sizes: NDArray[np.uint32],
        out: Pages,
    ) -> None:
        """Unpack the chosen pages, all of one codec."""
        compressed = np.full(len(chosen), codec != "none", np.uint8)
        target = out if len(chosen) == len(out) else np.empty((len(chosen), self.page_size), np.uint8)
        name = next(iter(kdump.CODEC_FLAGS)) if codec == "none" else codec
        spare = self._spare[name]
        try:
            unpacker = spare.pop()
        except IndexError:
            unpacker = make_unpacker(name, self.page_size)
        try:
            unpacker.unpack(data, places[chosen], sizes[chosen], compressed, target.reshape(-1))
        except CodecError as error:
            raise CodecError(
                f"{self._file.path}: page {pfn + int(chosen[error.page]):#x} does not unpack: {error}",
                engine=error.engine,
                page=pfn + int(chosen[error.page]),
            ) from error
        finally:
            spare.append(unpacker)
        if target is not out:
            out[chosen] = target

    def _read_spans(
        self, offsets: NDArray[np.uint64], sizes: NDArray[np.uint32]
    ) -> tuple[Pages, NDArray[np.uint64]]:
        """Read the data of pages in few reads; give it and the place of each page in it."""
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
            self._file.read_into(int(begin), data[low:high])
        span_of = np.searchsorted(span_begins, offsets.astype(np.int64), side="right") - 1
        places = span_places[span_of] + (offsets.astype(np.int64) - span_begins[span_of])
        return data, places.astype(np.uint64)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _KdumpMemory:
    """A run of pages that are all in the dump."""

    copies = True

    def __init__(self, dump: KdumpDump, page_size: int, first_pfn: int, page_count: int) -> None:
        self._dump = dump
        self._page_size = page_size
        self._first_pfn = first_pfn
        self._page_count = page_count

    @property
    def size(self) -> int:
        return self._page_count * self._page_size

    def extents(self) -> Iterator[tuple[int, int]]:
        yield 0, self.size

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        page_size = self._page_size
        first, last = offset // page_size, -(-(offset + length) // page_size)
        whole = (
            scratch[:length]
            if length == (last - first) * page_size
            else np.empty((last - first) * page_size, np.uint8)
        )
        self._dump.read_pages(self._first_pfn + first, whole.reshape(-1, page_size))
        begin = offset - first * page_size
        return whole[begin : begin + length]


def _ranks(bitmap: Pages) -> NDArray[np.uint64]:
    """Count the set bits in front of each window; the last entry counts all."""
    bits = 8 * bitmap.size
    counts = [count(bitmap, begin, min(begin + _RANK_WINDOW, bits)) for begin in range(0, bits, _RANK_WINDOW)]
    return np.concatenate(([0], np.cumsum(counts, dtype=np.uint64))).astype(np.uint64)


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
            if header["sub_hdr_size"] <= 0 or header["bitmap_blocks"] == 0 or header["bitmap_blocks"] % 2:
                continue
            if version != kdump.HEADER_VERSION:
                raise CapabilityError(
                    f"{file.path}: kdump header version {version} cannot be read yet, only 6"
                )
            return elf_class, byteorder, header
    found = f"version {versions.pop()}" if versions else "no version that exists"
    raise FormatError(
        f"the kdump header has {found}, and block sizes that make no sense", path=file.path, offset=8
    )


def _read_sub_header(
    file: ByteFile, elf_class: ElfClass, byteorder: ByteOrder, header: dict[str, Any]
) -> dict[str, Any]:
    """Read the sub-header; find its form by the 64-bit max_mapnr, which the header repeats in 32 bits."""
    forms: tuple[kdump.SubHeaderForm, ...] = ("64",) if elf_class == 64 else ("32 packed", "32 padded")
    block_size = header["block_size"]
    area_end = (kdump.HEADER_BLOCKS + header["sub_hdr_size"]) * block_size
    for form in forms:
        layout = kdump.SUB_HEADER[form]
        begin = kdump.HEADER_BLOCKS * block_size
        second = layout.unpack(file.read(begin, layout.size), 0, byteorder, path=file.path)
        if min(second["max_mapnr_64"], 0xFFFFFFFF) != header["max_mapnr"]:
            continue
        if second["split"]:
            raise CapabilityError(f"{file.path}: this is one part of a split dump, which cannot be read yet")
        note_end = second["offset_note"] + second["size_note"]
        if second["size_note"] and not begin + layout.size <= second["offset_note"] <= note_end <= area_end:
            raise FormatError("the notes lie outside the sub-header's blocks", path=file.path, offset=begin)
        if not second["size_note"]:
            second["offset_note"] = begin
        return second
    raise FormatError("max_mapnr differs between header and sub-header", path=file.path, offset=block_size)
