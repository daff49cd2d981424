"""kdump-compressed files as guests."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import arch_of_kdump
from vmdump.arch.registers import MAX_CPUS
from vmdump.codecs.registry import PageUnpacker, make_unpacker
from vmdump.errors import CodecError, FormatError
from vmdump.formats import kdump
from vmdump.formats.notes import count_cpus, find_vmcoreinfo
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.blocks import MAX_BLOCKS, BlockList, Pages
from vmdump.guest.linux.utsname import Utsname, names_told
from vmdump.guest.stored import StoredPages
from vmdump.readers.bitmap import read_bitmap
from vmdump.readers.bytes.file import ByteFile
from vmdump.readers.cache import BytesCache
from vmdump.readers.contents import Contents
from vmdump.readers.dump import Dump
from vmdump.readers.kdump_areas import (
    KINDS,
    KdumpPart,
    KdumpTable,
    check_table,
    read_spans,
    zero_page,
)
from vmdump.readers.kdump_header import KdumpHeaders, read_area, read_headers, sort_parts
from vmdump.readers.kdump_memory import KdumpMemory
from vmdump.readers.kinds import PageKind

__all__ = ["KdumpDump"]

_BATCH = 4 << 20
"""Bytes of pages decompressed in one call."""
_AHEAD = 16
"""Pages unpacked at once where one is read after the other, piece by piece."""
_CACHED = 8 << 20
"""Bytes of unpacked pages that are kept for small reads, and of descriptors: those of 1.3 GiB of memory."""
_ROWS = 1024
"""Descriptors read at once for small reads, 24 KiB: a system call takes 1 to 20 us, whatever its size."""


class KdumpDump(Dump):
    """A kdump-compressed file of header version 1 to 6, or a split set of them.

    Its first bitmap is the guest's memory, hence `blocks`; the second one says which of its pages are in
    the dump.

    Parameters
    ----------
    contents : Contents
        One file, or a split set.

    Raises
    ------
    FormatError
        An offset, size or count of the headers is wrong, or the files are not a split set.
    CapabilityError
        Parts of a split set are missing.
    """

    def __init__(self, contents: Contents) -> None:
        self._take(contents.files)
        self._found = found = self._sort([(part, read_headers(part)) for part in contents.files])
        self.headers = headers = found[0][1]
        self.format = f"kdump {'split ' if headers.split else ''}{contents.layout}"
        memory = self._read_bitmaps(found[0][0], headers)
        self._descriptor = kdump.PAGE_DESCRIPTOR.dtype(headers.byteorder)
        self._parts = list(self._lay_out(found))
        self._begins = [part.begin for part in self._parts]
        self._row = kdump.PAGE_DESCRIPTOR.struct(headers.byteorder)
        self._cache, self._tables = BytesCache(_CACHED), BytesCache(_CACHED)
        self._next = -1
        self._zeros = bytes(headers.block_size)
        self._spare: dict[str, list[PageUnpacker]] = {codec: [] for codec in kdump.CODEC_FLAGS}
        block_size = headers.block_size
        firsts, ends = memory[:, 0].astype(np.uint64), memory[:, 1].astype(np.uint64)
        if len(ends) and int(ends[-1]) * block_size > 1 << 64:
            raise FormatError(f"page {int(ends[-1]) - 1:#x} is beyond 64 bits", path=self.path)
        blocks = BlockList(
            firsts * np.uint64(block_size),
            (ends - firsts) * np.uint64(block_size),
            lambda index: KdumpMemory(
                self, block_size, int(memory[index, 0]), int(memory[index, 1] - memory[index, 0])
            ),
        )
        names = names_told(headers.utsname, b"")
        machine = (names.machine if names else headers.header["machine"]).decode("ascii", "replace")
        note = find_vmcoreinfo(headers.notes, headers.byteorder)
        beside = Vmcoreinfo(headers.vmcoreinfo)
        better = note is None or ("OSRELEASE" in beside and "OSRELEASE" not in Vmcoreinfo(note.desc))
        super().__init__(
            blocks,
            arch_of_kdump(machine, headers.elf_class, headers.byteorder, headers.notes, beside),
            byteorder=headers.byteorder,
            elf_class=headers.elf_class,
            page_size=block_size,
            notes=headers.notes,
            vmcoreinfo=headers.vmcoreinfo if headers.vmcoreinfo and better else None,
        )
        self.incomplete = bool(headers.header["status"] & kdump.STATUS_INCOMPLETE)
        self.codec = next(self._codecs(), "")
        level = headers.sub_header["dump_level"]
        self.dump_level = level if 0 <= level <= kdump.MAX_DUMP_LEVEL else kdump.DUMP_LEVEL

    def _sort(self, parts: list[tuple[ByteFile, KdumpHeaders]]) -> list[tuple[ByteFile, KdumpHeaders]]:
        return sort_parts(parts)

    @property
    def phys_base(self) -> int:
        """By VMCOREINFO, else by the sub-header, in which QEMU's own files have a wrong one then."""
        told: int = self.headers.sub_header["phys_base"]
        better = any(self.vmcoreinfo.number(name) is not None for name in ("phys_base", "PHYS_OFFSET"))
        return super().phys_base if better else told

    @cached_property
    def excluded_size(self) -> int:
        """By the difference of its bitmaps."""
        return (self._known.total - self._present.total) * self.page_size

    def _codecs(self) -> Iterator[str]:
        status = self.headers.header["status"]
        return (codec for codec, flag in kdump.CODEC_FLAGS.items() if status & flag)

    @property
    def compression(self) -> str:
        """Codecs in its status."""
        return ", ".join(self._codecs())

    @property
    def maker(self) -> str:
        """The program that wrote it, by what only that does."""
        header, level = self.headers.header, self.headers.sub_header["dump_level"]
        # Only makedumpfile notes a time; QEMU has no other level than 1, and tells the machine's name alone.
        if header["tv_sec"] or self.headers.version < kdump.HEADER_VERSION:
            return "makedumpfile"
        if level != kdump.DUMP_LEVEL:
            return "vmdump, or makedumpfile"
        if header["sysname"]:
            return "vmdump, or makedumpfile -d 1"
        return "QEMU, or vmdump of a guest without VMCOREINFO"

    @cached_property
    def nr_cpus(self) -> int:
        """By the register notes, else by the header."""
        told: int = self.headers.header["nr_cpus"]
        with self._naming():
            counted = count_cpus(self.notes, self.byteorder)
        return counted or (told if 0 < told <= MAX_CPUS else 1)

    def _names_told(self, release: bytes) -> Utsname | None:
        # QEMU's own files say nothing, or "Unknown": then it is found out as for any other guest.
        return names_told(self.headers.utsname, release)

    @cached_property
    def eraseinfo(self) -> bytes:
        """What the sub-headers of all parts point at; FormatError where that is not inside the file."""
        return b"".join(read_area(file, headers.sub_header, "eraseinfo") for file, headers in self._found)

    def _lay_out(self, found: list[tuple[ByteFile, KdumpHeaders]]) -> Iterator[KdumpPart]:
        itemsize, base = self._descriptor.itemsize, 0
        for file, headers in found:
            if headers.split and headers.begin_pfn == headers.end_pfn:
                continue  # makedumpfile cuts at multiples of 2^20 pages, and makes empty parts
            begin = min(headers.begin_pfn, self._stored.size)
            rank = self._stored.rank(begin)
            length = self._stored.rank(min(headers.end_pfn, self._stored.size)) - rank
            table = headers.descriptors_offset
            if table + length * itemsize > file.size:
                raise FormatError(
                    f"{length} page descriptors do not fit into the file", path=file.path, offset=table
                )
            # makedumpfile and QEMU put the page that zero pages share in front of all other page data, and
            # that behind the descriptors of all parts.
            zero = zero_page(file, table + self._stored.total * itemsize, headers.block_size)
            yield KdumpPart(file, headers.begin_pfn, headers.end_pfn, rank, table, zero, base)
            base += file.size

    def _read_bitmaps(self, file: ByteFile, headers: KdumpHeaders) -> NDArray[np.uint64]:
        """Keep the bitmaps; give the runs of pages that the guest had."""
        first, second = headers.bitmap_offsets
        memory = read_bitmap(file, first, headers.max_mapnr)
        stored = memory if second == first else read_bitmap(file, second, headers.max_mapnr)
        self._stored = self._present = stored
        self._known = memory if stored is memory else memory | stored
        runs = self._known.runs(MAX_BLOCKS)
        if runs is None:
            raise FormatError(
                f"the memory is in more than {MAX_BLOCKS} pieces",
                path=self.path,
                offset=headers.bitmap_offsets[0],
            )
        return runs

    def excluded_pages(self, pfn: int, count: int) -> NDArray[np.bool_] | None:
        """Tell which pages of the first bitmap the second one lacks; None if it lacks none."""
        if not self.excluded_size:
            return None
        return self._known.select(pfn, count) & ~self._present.select(pfn, count)

    def stored_runs(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Give the first runs of pages of ``[begin, end)`` in the dump; see `PageBitmap.next_runs`."""
        return self._present.next_runs(begin, end)

    def page_kinds(self, pfn: int, count: int) -> NDArray[np.uint8]:
        """Tell how the dump holds pages, by bitmaps and descriptors; see :meth:`Dump.page_kinds`."""
        return self._kinds(pfn, count)

    def kinds_and_damage(self, pfn: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Tell how the dump holds pages, whatever their descriptors; see :meth:`Dump.kinds_and_damage`."""
        damage = np.zeros(count, np.bool_)
        return self._kinds(pfn, count, damage), damage

    def _kinds(
        self, pfn: int, count: int, damage: dict[int, str] | NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint8]:
        kinds = np.full(count, PageKind.MISSING, np.uint8)
        excluded = self.excluded_pages(pfn, count)
        if excluded is not None:
            kinds[excluded] = PageKind.EXCLUDED
        for part, begin, end in self._cut(pfn, count):
            here = damage[begin - pfn : end - pfn] if isinstance(damage, np.ndarray) else damage
            table = self._table(part, begin, end - begin, here)
            found = np.full(len(table.flags), PageKind.PLAIN, np.uint8)
            for flag, kind in KINDS.items():
                found[table.flags == flag] = kind
            found[table.zero] = PageKind.ZERO
            kinds[begin - pfn : end - pfn][table.present] = found
        return kinds

    def stored_pages(self, pfn: int, count: int, without: NDArray[np.bool_] | None = None) -> StoredPages:
        """Give pages as they are stored; see :meth:`vmdump.guest.guest.Guest.stored_pages`."""
        for _ in self.pieces(pfn * self.page_size, (pfn + count) * self.page_size):
            pass
        pieces: list[Pages] = []
        stored = StoredPages(
            np.empty(0, np.uint8),
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint32),
            np.zeros(count, np.uint32),
            np.zeros(count, np.uint64),
            np.ones(count, np.bool_),
            np.zeros(count, np.bool_),
        )
        length = 0
        for part, begin, end in self._cut(pfn, count):
            skipped = None if without is None else without[begin - pfn : end - pfn]
            table = self._table(part, begin, end - begin, without=skipped)
            rows = np.flatnonzero(table.present) + (begin - pfn)
            data, places = read_spans(part.file, table.offsets, table.sizes)
            stored.offsets[rows] = places + np.uint64(length)
            stored.sizes[rows] = table.sizes
            stored.flags[rows] = table.flags
            stored.identities[rows] = table.offsets + np.uint64(part.base)
            stored.excluded[rows] = False
            stored.zero[rows] = table.zero
            pieces.append(data)
            length += data.size
        return replace(stored, data=pieces[0] if len(pieces) == 1 else np.concatenate([stored.data, *pieces]))

    def _runs(self) -> Iterator[tuple[int, int]]:
        begin, end = 0, self._stored.size
        while len(found := self._present.next_runs(begin, end)):
            yield from map(tuple, found.tolist())
            begin = int(found[-1, 1])

    def __contains__(self, address: object) -> bool:
        """Tell whether the dump holds the byte at a guest-physical address."""
        return isinstance(address, SupportsIndex) and self._present.has(address.__index__() // self.page_size)

    def read(self, address: int, length: int) -> bytes:
        """Read guest-physical memory; what is inside one page goes through a cache of unpacked pages."""
        pfn, offset = divmod(address, self.page_size)
        if not 0 < length <= self.page_size - offset or not self._present.has(pfn):
            return super().read(address, length)
        page = self._cache.get(pfn)
        if page is None:
            page = self._load(pfn)
        return page[offset : offset + length]

    def _load(self, pfn: int) -> bytes:
        """Unpack a page into the cache; those after it too, if the last one was the one before."""
        count = 1
        if pfn == self._next:
            ahead = self._present.select(pfn, _AHEAD)
            count = int(ahead.argmin()) or _AHEAD
        self._next = pfn + count
        pages: list[bytes] = []
        if count > 1:
            batch = np.empty((count, self.page_size), np.uint8)
            with suppress(CodecError, FormatError):  # of a page that nobody has asked for
                self.read_pages(pfn, batch)
                pages = [page.tobytes() for page in batch]
        pages = pages or [self._single(pfn)]
        for index, page in enumerate(pages):
            self._cache.put(pfn + index, page)
        return pages[0]

    def _single(self, pfn: int) -> bytes:
        """Unpack one page, without arrays: they take longer than the page."""
        part = self._parts[bisect_right(self._begins, pfn) - 1]
        offset, size, flags = self._descriptor_of(part, pfn)
        if offset == part.zero and not flags:
            return self._zeros
        codec = kdump.FLAG_CODECS.get(flags)
        if codec is None or not 0 < size < self.page_size or offset > part.file.size - size:
            page = np.empty((1, self.page_size), np.uint8)
            self.read_pages(pfn, page)
            return page.tobytes()
        data = part.file.read(offset, size)
        unpacker = self._unpacker(codec)
        try:
            return unpacker.unpack_page(data)
        except CodecError as error:
            raise self._broken(pfn, error) from error
        finally:
            self._spare[codec].append(unpacker)

    def _descriptor_of(self, part: KdumpPart, pfn: int) -> tuple[int, int, int]:
        """Give offset, size and flags of a page in the dump; neighbouring descriptors are kept."""
        index = self._stored.rank(pfn) - part.rank
        window, row = divmod(index, _ROWS)
        rows = self._tables.get((part.begin, window))
        if rows is None:
            begin = part.table + window * _ROWS * self._row.size
            rows = part.file.read(begin, min(_ROWS * self._row.size, part.file.size - begin))
            self._tables.put((part.begin, window), rows)
        offset, size, flags, _ = self._row.unpack_from(rows, row * self._row.size)
        return offset, size, flags

    def _unpacker(self, codec: str) -> PageUnpacker:
        """Take one that no thread uses; the caller gives it back."""
        try:
            return self._spare[codec].pop()
        except IndexError:
            return make_unpacker(codec, self.page_size)

    def _broken(self, pfn: int, error: CodecError) -> CodecError:
        text = f"{self.path}: page {pfn:#x} does not unpack: {error}; see 'vmdump repair'"
        return CodecError(text, engine=error.engine, page=pfn)

    def _cut(self, pfn: int, count: int) -> Iterator[tuple[KdumpPart, int, int]]:
        """Give the parts that hold pages ``[pfn, pfn + count)``, and which of these, ``[begin, end)``."""
        for part in self._parts[max(bisect_right(self._begins, pfn) - 1, 0) :]:
            begin, end = max(pfn, part.begin), min(pfn + count, part.end)
            if part.begin >= pfn + count:
                return
            if begin < end:  # else the pages are in a part that was lost
                yield part, begin, end

    def _rows(self, part: KdumpPart, pfn: int, count: int) -> tuple[NDArray[np.bool_], NDArray[np.void]]:
        """Tell which pages are in the dump, all of one part, and read their descriptors."""
        stored = self._stored.select(pfn, count)
        itemsize = self._descriptor.itemsize
        length = int(np.count_nonzero(stored)) * itemsize
        rank = self._stored.rank(pfn) - part.rank
        return stored, np.frombuffer(part.file.read(part.table + rank * itemsize, length), self._descriptor)

    def _table(
        self,
        part: KdumpPart,
        pfn: int,
        count: int,
        damage: dict[int, str] | NDArray[np.bool_] | None = None,
        without: NDArray[np.bool_] | None = None,
    ) -> KdumpTable:
        """Read the descriptors, and check them but for those of pages `without`; see `check_table`."""
        present, rows = self._rows(part, pfn, count)
        if without is not None:
            rows = rows[~without[present]]
            present = present & ~without
        return check_table(part.file, pfn, present, rows, self.page_size, part.zero, damage)

    def read_whole(self, pfn: int, out: Pages) -> tuple[dict[int, str], NDArray[np.uint8]]:
        """Read pages of which some are damaged; see :meth:`Dump.read_whole`."""
        damage: dict[int, str] = {}
        self.read_pages(pfn, out, damage)
        return damage, self._kinds(pfn, len(out), damage)

    def read_pages(
        self,
        pfn: int,
        out: Pages,
        damage: dict[int, str] | None = None,
        without: NDArray[np.bool_] | None = None,
    ) -> None:
        """Decompress consecutive pages into ``(count, page_size)`` `out`; those not in the dump are zero.

        Damaged pages go to `damage`, if given, with the reason; else the first one is an error. Pages that
        `without` names are zero as well.
        """
        batch = max(_BATCH // self.page_size, 1)
        for first in range(0, len(out), batch):
            pages = out[first : first + batch]
            done = 0
            for part, begin, end in self._cut(pfn + first, len(pages)):
                done = end - pfn - first
                skipped = None if without is None else without[begin - pfn : end - pfn]
                self._read_batch(part, begin, pages[begin - pfn - first : done], damage, skipped)
            pages[done:] = 0

    def _read_batch(
        self,
        part: KdumpPart,
        pfn: int,
        out: Pages,
        damage: dict[int, str] | None,
        without: NDArray[np.bool_] | None,
    ) -> None:
        table = self._table(part, pfn, len(out), damage, without)
        stored = ~table.zero
        rows = np.flatnonzero(table.present)[stored]
        data, found = read_spans(part.file, table.offsets[stored], table.sizes[stored])
        flags = table.flags[stored]
        codecs = [int(flag) for flag in np.unique(flags) if flag]
        # Whatever is not unpacked now has the size 0, which is a zero page to an unpacker.
        places, sizes = np.zeros(len(out), np.uint64), np.zeros(len(out), np.uint32)
        packed = np.zeros(len(out), np.uint8)
        places[rows], sizes[rows], packed[rows] = found, table.sizes[stored], flags != 0
        first, others = (codecs or [1])[0], codecs[1:]
        for flag in others:
            sizes[rows[flags == flag]] = 0
        self._unpack(kdump.FLAG_CODECS[first], pfn, None, data, places, sizes, packed, out, damage)
        for flag in others:
            chosen = rows[flags == flag]
            sizes[chosen] = table.sizes[stored][flags == flag]
            self._unpack(kdump.FLAG_CODECS[flag], pfn, chosen, data, places, sizes, packed, out, damage)

    def _unpack(
        self,
        codec: str,
        pfn: int,
        chosen: NDArray[np.intp] | None,
        data: Pages,
        places: NDArray[np.uint64],
        sizes: NDArray[np.uint32],
        packed: Pages,
        out: Pages,
        damage: dict[int, str] | None,
    ) -> None:
        """Unpack all pages of a batch, or the chosen ones; the compressed ones are of one codec."""
        target = out
        if chosen is not None:
            places, sizes, packed = places[chosen], sizes[chosen], packed[chosen]
            target = np.empty((len(chosen), self.page_size), np.uint8)
        unpacker, done = self._unpacker(codec), 0
        try:
            while done < len(target):
                rest = target[done:].reshape(-1)
                try:
                    unpacker.unpack(data, places[done:], sizes[done:], packed[done:], rest)
                    break
                except CodecError as error:
                    index = done + error.page
                    page = pfn + int(index if chosen is None else chosen[index])
                    if damage is None:
                        raise self._broken(page, error) from error
                    damage[page] = str(self._broken(page, error))
                    done = index + 1
        finally:
            self._spare[codec].append(unpacker)
        if chosen is not None:
            out[chosen] = target

    def close(self) -> None:
        """Close the files, and forget what was read."""
        super().close()
        # Blocks and dump refer to each other: else it would wait until Python looks for cycles.
        self._cache.clear()
        self._tables.clear()
