"""Takes a standard-layout kdump-compressed file apart and insists on what the format demands."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SIGNATURE = b"KDUMP   "
UTS_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")

ZLIB, LZO, SNAPPY, INCOMPLETE, EXCLUDED_VMEMMAP, ZSTD = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
DISK_BLOCK = 4096
CODEC_FLAGS = {"zlib": ZLIB, "lzo": LZO, "snappy": SNAPPY, "zstd": ZSTD}
DESCRIPTOR_SIZE = 24

# name, offset and struct code of each field behind utsname; the key is the class.
_HEADER_FIELDS = {
    32: (("tv_sec", 404, "i"), ("tv_usec", 408, "i"), ("status", 412, "I"), ("block_size", 416, "i"),
         ("sub_hdr_size", 420, "i"), ("bitmap_blocks", 424, "I"), ("max_mapnr", 428, "I"),
         ("total_ram_blocks", 432, "I"), ("device_blocks", 436, "I"), ("written_blocks", 440, "I"),
         ("current_cpu", 444, "I"), ("nr_cpus", 448, "i")),
    64: (("tv_sec", 408, "q"), ("tv_usec", 416, "q"), ("status", 424, "I"), ("block_size", 428, "i"),
         ("sub_hdr_size", 432, "i"), ("bitmap_blocks", 436, "I"), ("max_mapnr", 440, "I"),
         ("total_ram_blocks", 444, "I"), ("device_blocks", 448, "I"), ("written_blocks", 452, "I"),
         ("current_cpu", 456, "I"), ("nr_cpus", 460, "i")),
}  # fmt: skip
_HEADER_SIZE = {32: 452, 64: 464}

# 32-bit machines that align a u64 to 4 bytes (i386) have the packed form, the others the padded one.
_SUB_HEADER_FIELDS = {
    "packed": (("phys_base", 0, "I"), ("dump_level", 4, "i"), ("split", 8, "i"), ("start_pfn", 12, "I"),
               ("end_pfn", 16, "I"), ("offset_vmcoreinfo", 20, "Q"), ("size_vmcoreinfo", 28, "I"),
               ("offset_note", 32, "Q"), ("size_note", 40, "I"), ("offset_eraseinfo", 44, "Q"),
               ("size_eraseinfo", 52, "I"), ("start_pfn_64", 56, "Q"), ("end_pfn_64", 64, "Q"),
               ("max_mapnr_64", 72, "Q")),
    "padded": (("phys_base", 0, "I"), ("dump_level", 4, "i"), ("split", 8, "i"), ("start_pfn", 12, "I"),
               ("end_pfn", 16, "I"), ("offset_vmcoreinfo", 24, "Q"), ("size_vmcoreinfo", 32, "I"),
               ("offset_note", 40, "Q"), ("size_note", 48, "I"), ("offset_eraseinfo", 56, "Q"),
               ("size_eraseinfo", 64, "I"), ("start_pfn_64", 72, "Q"), ("end_pfn_64", 80, "Q"),
               ("max_mapnr_64", 88, "Q")),
    "64-bit": (("phys_base", 0, "q"), ("dump_level", 8, "i"), ("split", 12, "i"), ("start_pfn", 16, "Q"),
               ("end_pfn", 24, "Q"), ("offset_vmcoreinfo", 32, "Q"), ("size_vmcoreinfo", 40, "Q"),
               ("offset_note", 48, "Q"), ("size_note", 56, "Q"), ("offset_eraseinfo", 64, "Q"),
               ("size_eraseinfo", 72, "Q"), ("start_pfn_64", 80, "Q"), ("end_pfn_64", 88, "Q"),
               ("max_mapnr_64", 96, "Q")),
}  # fmt: skip
SUB_HEADER_SIZE = {"packed": 80, "padded": 96, "64-bit": 104}


def _unpack(data: Any, base: int, order: str, fields: tuple[tuple[str, int, str], ...]) -> dict[str, int]:
    return {name: struct.unpack_from(order + code, data, base + offset)[0] for name, offset, code in fields}


@dataclass(frozen=True)
class Form:
    """How the numbers of a file are written: class and byte order."""

    bits: int
    byteorder: str

    @property
    def prefix(self) -> str:
        """The prefix of struct formats and numpy types."""
        return "<" if self.byteorder == "little" else ">"


def find_form(data: Any) -> Form:
    """Find class and byte order by the plausibility of the header, the only way a reader has."""
    found = []
    for bits in (64, 32):
        for byteorder in ("little", "big"):
            form = Form(bits, byteorder)
            header = _unpack(data, 0, form.prefix, _HEADER_FIELDS[bits])
            block_size = header["block_size"]
            if (
                4096 <= block_size <= 65536
                and block_size & (block_size - 1) == 0
                and 0 < header["sub_hdr_size"] < 1 << 20
                and header["bitmap_blocks"] * block_size * 8 >= header["max_mapnr"]
                and header["nr_cpus"] >= 0
            ):
                found.append(form)
    assert len(found) == 1, f"class and byte order are not clear: {found}"
    return found[0]


def decompress(codec_flag: int, data: bytes, block_size: int) -> bytes:
    """Decompress one page with somebody else's library; the result has exactly `block_size` bytes."""
    if codec_flag == ZLIB:
        stream = zlib.decompressobj()
        page = stream.decompress(data, block_size + 1)
        assert stream.eof, "the zlib stream is cut off"
        assert not stream.unused_data, "the zlib stream ends before its descriptor's size"
    else:
        page = _binding(codec_flag)(data, block_size)
    assert len(page) == block_size, f"page of {len(page)} bytes in a dump of {block_size}-byte blocks"
    return page


def _binding(codec_flag: int) -> Callable[[bytes, int], bytes]:
    if codec_flag == LZO:
        import lzo

        return lambda data, size: lzo.decompress(data, False, size)
    if codec_flag == SNAPPY:
        import snappy

        return lambda data, size: snappy.uncompress(data)
    import zstandard

    return lambda data, size: zstandard.ZstdDecompressor().decompress(data, max_output_size=size)


class Kdump:
    """A kdump-compressed file in standard layout.

    Attributes
    ----------
    form : Form
    header, sub_header : dict of str to int
    uts : dict of str to str
    packing : "packed", "padded" or "64-bit"
    bitmap1, bitmap2 : bytes
    pfns : (n,) uint64, the frames of `bitmap2`
    descriptors : (n,) structured: offset, size, flags, page_flags
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = self._data
        assert data[:8] == SIGNATURE, f"signature {data[:8]!r}"
        self.form = find_form(data)
        order = self.form.prefix
        self.header = _unpack(data, 0, order, _HEADER_FIELDS[self.form.bits])
        self.header["version"] = struct.unpack_from(order + "i", data, 8)[0]
        self._uts_raw = {name: data[12 + 65 * i : 12 + 65 * (i + 1)] for i, name in enumerate(UTS_FIELDS)}
        self.uts = {name: raw.split(b"\0")[0].decode("ascii") for name, raw in self._uts_raw.items()}
        self.block_size = self.header["block_size"]
        self.packing = self._find_packing()
        self.sub_header = _unpack(data, self.block_size, order, _SUB_HEADER_FIELDS[self.packing])
        self.max_mapnr = self.sub_header["max_mapnr_64"]

        half = self.header["bitmap_blocks"] // 2 * self.block_size
        self.bitmap_offset = self.block_size * (1 + self.header["sub_hdr_size"])
        self.descriptor_offset = self.bitmap_offset + 2 * half
        assert self.descriptor_offset <= self.size, "the bitmaps are not inside the file"
        self.bitmap1 = data[self.bitmap_offset : self.bitmap_offset + half]
        self.bitmap2 = data[self.bitmap_offset + half : self.descriptor_offset]
        self.pfns = _set_bits(self.bitmap2)
        self.data_offset = self.descriptor_offset + DESCRIPTOR_SIZE * len(self.pfns)
        assert self.data_offset <= self.size, "the descriptors are not inside the file"
        dtype = np.dtype(
            [
                ("offset", order + "u8"),
                ("size", order + "u4"),
                ("flags", order + "u4"),
                ("page_flags", order + "u8"),
            ]
        )
        self.descriptors = np.frombuffer(data, dtype, len(self.pfns), self.descriptor_offset)

    def _find_packing(self) -> str:
        """libkdumpfile's rule: packed if that form's VMCOREINFO is absent or inside the sub-header area."""
        if self.form.bits == 64:
            return "64-bit"
        packed = _unpack(self._data, self.block_size, self.form.prefix, _SUB_HEADER_FIELDS["packed"])
        begin, size = packed["offset_vmcoreinfo"], packed["size_vmcoreinfo"]
        end_of_area = self.block_size * (1 + self.header["sub_hdr_size"])
        absent = begin == 0 and size == 0
        inside = self.block_size < begin and begin + size <= end_of_area
        return "packed" if absent or inside else "padded"

    def _area(self, name: str) -> bytes:
        begin, size = self.sub_header[f"offset_{name}"], self.sub_header[f"size_{name}"]
        return self._data[begin : begin + size]

    @property
    def notes(self) -> bytes:
        """The ELF notes, concatenated."""
        return self._area("note")

    @property
    def vmcoreinfo(self) -> bytes:
        """The text of VMCOREINFO, empty where there is none."""
        return self._area("vmcoreinfo")

    @property
    def codec_flag(self) -> int:
        """The compression flag of the header's status."""
        return self.header["status"] & (ZLIB | LZO | SNAPPY | ZSTD)

    def data_at(self, offset: int, size: int) -> bytes:
        """Bytes of the file."""
        return self._data[offset : offset + size]

    def page_at(self, index: int) -> bytes:
        """The page of descriptor `index`."""
        offset, size, flags, _ = self.descriptors[index].tolist()
        data = self._data[offset : offset + size]
        if flags == 0:
            assert size == self.block_size, f"plain page of {size} bytes"
            return data
        return decompress(flags, data, self.block_size)

    def page(self, pfn: int) -> bytes:
        """The page with frame number `pfn`; KeyError if the dump does not have it."""
        index = int(np.searchsorted(self.pfns, np.uint64(pfn)))
        if index == len(self.pfns) or int(self.pfns[index]) != pfn:
            raise KeyError(pfn)
        return self.page_at(index)

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Every (pfn, page) in pfn order."""
        for index, pfn in enumerate(self.pfns.tolist()):
            yield pfn, self.page_at(index)

    def frame_ranges(self) -> list[tuple[int, int]]:
        """The dumped frames as half-open ranges."""
        if not len(self.pfns):
            return []
        cut = np.flatnonzero(np.diff(self.pfns) != 1) + 1
        begins = self.pfns[np.concatenate(([0], cut))].tolist()
        ends = self.pfns[np.concatenate((cut - 1, [len(self.pfns) - 1]))].tolist()
        return [(begin, end + 1) for begin, end in zip(begins, ends, strict=True)]

    def check(self, *, ahead: bool = False, level: int = 1) -> Kdump:
        """Assert everything the format demands of a complete version 6 dump, filtered if `level` is above 1.

        `ahead`: pages were packed before the pause, so that they stand in any order and with gaps.
        """
        self._check_headers(level)
        if level == 1:
            self._check_bitmaps()
        self._check_descriptors(ahead)
        return self

    def _check_headers(self, level: int) -> None:
        header, sub, block_size = self.header, self.sub_header, self.block_size
        assert header["version"] == 6, f"header version {header['version']}"
        assert header["status"] == self.codec_flag, "a status bit that is no codec"
        assert self.codec_flag in (0, ZLIB, LZO, SNAPPY, ZSTD), "two codecs in one header"
        assert header["max_mapnr"] == min(self.max_mapnr, 0xFFFFFFFF), (
            "max_mapnr is not the same in both headers"
        )
        assert header["bitmap_blocks"] > 0
        assert header["bitmap_blocks"] % 2 == 0
        assert header["nr_cpus"] >= 0
        assert header["tv_sec"] >= 0
        assert 0 <= header["tv_usec"] < 1_000_000
        for name, raw in self._uts_raw.items():
            text, _, rest = raw.partition(b"\0")
            assert len(text) <= 64, f"utsname.{name} has no NUL"
            assert not rest.strip(b"\0"), f"utsname.{name} is not NUL-padded"
        tail = self._data[_HEADER_SIZE[self.form.bits] : block_size]
        assert not any(tail), "the header block is not zero behind the header"

        assert sub["split"] == 0, "a part of a split dump"
        assert sub["dump_level"] == level, f"level {sub['dump_level']}"
        end = block_size + SUB_HEADER_SIZE[self.packing]
        if sub["size_note"]:
            assert sub["offset_note"] == end, "the notes do not stand directly behind the sub-header"
            end += sub["size_note"]
        for name in ("vmcoreinfo", "eraseinfo"):
            begin, size = sub[f"offset_{name}"], sub[f"size_{name}"]
            assert (begin == 0) == (size == 0), f"half a {name}"
            if size:
                assert begin >= block_size + SUB_HEADER_SIZE[self.packing], f"{name} lies in the sub-header"
                if not sub["offset_note"] <= begin <= begin + size <= sub["offset_note"] + sub["size_note"]:
                    assert begin >= end, f"{name} overlaps the notes"
                    end = begin + size
        blocks = -(-(end - block_size) // block_size)
        assert header["sub_hdr_size"] == blocks, f"sub_hdr_size {header['sub_hdr_size']}, needed {blocks}"
        assert not any(self._data[end : self.bitmap_offset]), "the sub-header area is not zero at its end"

    def _check_bitmaps(self) -> None:
        octets = -(-self.max_mapnr // 8)
        blocks = max(1, -(-octets // self.block_size))
        assert len(self.bitmap2) == blocks * self.block_size, "bitmap of the wrong size"
        assert self.bitmap1 == self.bitmap2, "the bitmaps differ though nothing was filtered"
        if len(self.pfns):
            assert int(self.pfns[-1]) < self.max_mapnr, "a bit is set behind max_mapnr"

    def _check_descriptors(self, ahead: bool) -> None:
        table, block_size = self.descriptors, self.block_size
        offset, size, flags = (table[name].astype(np.uint64) for name in ("offset", "size", "flags"))
        assert (table["page_flags"] == 0).all(), "page_flags in use"
        assert ((flags == 0) | (flags == self.codec_flag)).all(), (
            "a page with another codec than the header's"
        )
        assert (size[flags == 0] == block_size).all(), "a plain page that is not block_size long"
        assert ((size[flags != 0] > 0) & (size[flags != 0] < block_size)).all(), "a page that did not shrink"
        assert (offset >= self.data_offset).all(), "page data before the end of the descriptors"
        inside = (offset <= self.size) & (offset + size <= self.size)
        assert inside.all(), "page data behind the file's end"
        if ahead:
            self._check_no_overlap()
            return
        zero = offset == self.data_offset
        assert (flags[zero] == 0).all()
        if len(table):
            assert not any(self._data[self.data_offset : self.data_offset + block_size]), (
                "page data does not begin with the shared zero page"
            )
        # The others lie in the order in which the first page with that data comes, up to the end of the file.
        # What is between two of them are zeros up to the next block of the disk.
        offset, size = offset[~zero], size[~zero]
        places, first, place = np.unique(offset, return_index=True, return_inverse=True)
        assert (size == size[first][place]).all(), "two pages share a part of their data"
        assert (np.diff(first) > 0).all(), "page data out of order"
        ends = np.concatenate(([np.uint64(self.data_offset + block_size)], places + size[first]))
        begins = np.concatenate((places, [np.uint64(self.size)]))
        assert (begins >= ends).all(), "page data overlaps"
        for gap in np.flatnonzero(begins > ends).tolist():
            begin, end = int(ends[gap]), int(begins[gap])
            assert end - begin < DISK_BLOCK, "page data has gaps"
            assert end % DISK_BLOCK == 0, "page data has gaps"
            assert not any(self._data[begin:end]), "a gap holds something"

    def _check_no_overlap(self) -> None:
        """Pages share all of their data, or nothing."""
        offsets, first, place = np.unique(self.descriptors["offset"], return_index=True, return_inverse=True)
        sizes = self.descriptors["size"]
        assert (sizes == sizes[first][place]).all(), "two pages share a part of their data"
        assert (offsets[:-1] + sizes[first][:-1] <= offsets[1:]).all(), "page data overlaps"


def _set_bits(bitmap: bytes) -> np.ndarray:
    """The numbers of the set bits, least significant bit first; the holes of a bitmap cost nothing."""
    octets = np.frombuffer(bitmap, np.uint8)
    filled = np.flatnonzero(octets)
    bits = np.unpackbits(octets[filled], bitorder="little").astype(bool)
    return (filled.astype(np.uint64)[:, None] * 8 + np.arange(8, dtype=np.uint64)).reshape(-1)[bits]
