"""kdump-compressed files as guests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import arch_by_uts_machine
from vmdump.errors import CapabilityError, CodecError, FormatError
from vmdump.formats import kdump
from vmdump.formats.notes import find_vmcoreinfo
from vmdump.kernels.engines import PageUnpacker, make_unpacker
from vmdump.readers.bitmap import PageBitmap
from vmdump.readers.dump import Dump
from vmdump.readers.file import ByteFile
from vmdump.readers.kdump_header import KdumpHeaders, read_headers
from vmdump.readers.kinds import PageKind, StoredPages
from vmdump.sources.base import Pages, Utsname
from vmdump.sources.blocks import BlockList

__all__ = ["KdumpDump"]

_SPAN_GAP = 4 << 10
"""Page data further apart than this, in bytes, is read with two reads. With larger gaps a batch of pages that
lie here and there, as changed and shared ones do, would take megabytes that nobody wants."""
_BATCH = 4 << 20
"""Bytes of pages decompressed in one call."""
_MAX_BLOCKS = 1 << 18
"""Runs of guest memory: no machine has that many, and whoever lists its blocks holds all of them."""
_KINDS = {0: PageKind.PLAIN} | {flag: PageKind[codec.upper()] for codec, flag in kdump.CODEC_FLAGS.items()}


@dataclass(frozen=True)
class _Table:
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


class KdumpDump(Dump):
    """A kdump-compressed file of header version 1 to 6.

    Its first bitmap is the guest's memory, hence `blocks`; the second one says which of its pages are in
    the dump.

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
        The file is one part of a split dump.
    """

    def __init__(self, file: ByteFile, layout: str) -> None:
        self._file = file
        self.files = (file.plain,)
        self.format = f"kdump {layout}"
        self.headers = headers = read_headers(file)
        if headers.split:
            raise CapabilityError(f"{file.path}: this is one part of a split dump, which cannot be read yet")
        memory = self._read_bitmaps(headers)
        self._descriptor = kdump.PAGE_DESCRIPTOR.dtype(headers.byteorder)
        end = headers.descriptors_offset + self._stored.total * self._descriptor.itemsize
        if end > file.size:
            raise FormatError(
                f"{self._stored.total} page descriptors do not fit into the file",
                path=file.path,
                offset=headers.descriptors_offset,
            )
        self._zero_offset = self._find_zero_page(end, headers.block_size)
        self._spare: dict[str, list[PageUnpacker]] = {codec: [] for codec in kdump.CODEC_FLAGS}
        block_size = headers.block_size
        firsts, ends = memory[:, 0].astype(np.uint64), memory[:, 1].astype(np.uint64)
        if len(ends) and int(ends[-1]) * block_size > 1 << 64:
            raise FormatError(f"page {int(ends[-1]) - 1:#x} is beyond 64 bits", path=file.path)
        blocks = BlockList(
            firsts * np.uint64(block_size),
            (ends - firsts) * np.uint64(block_size),
            lambda index: _KdumpMemory(
                self, block_size, int(memory[index, 0]), int(memory[index, 1] - memory[index, 0])
            ),
        )
        machine = headers.header["machine"].decode("ascii", "replace")
        told = find_vmcoreinfo(headers.notes, headers.byteorder) is None and headers.vmcoreinfo
        super().__init__(
            blocks,
            arch_by_uts_machine(machine, headers.elf_class, headers.byteorder),
            byteorder=headers.byteorder,
            elf_class=headers.elf_class,
            page_size=block_size,
            notes=headers.notes,
            vmcoreinfo=headers.vmcoreinfo if told else None,
        )
        self.utsname = Utsname(**{field.name: headers.header[field.name] for field in fields(Utsname)})

    def _read_bitmaps(self, headers: KdumpHeaders) -> NDArray[np.uint64]:
        """Keep the bitmaps; give the runs of pages that the guest had."""
        memory, stored = (self._read_bitmap(offset, headers.max_mapnr) for offset in headers.bitmap_offsets)
        self._stored = PageBitmap(stored)
        self._known = PageBitmap(memory | stored)
        self.excluded_size = (self._known.total - self._stored.total) * headers.block_size
        runs = self._known.runs(_MAX_BLOCKS)
        if runs is None:
            raise FormatError(
                f"the memory is in more than {_MAX_BLOCKS} pieces",
                path=self._file.path,
                offset=headers.bitmap_offsets[0],
            )
        return runs

    def _read_bitmap(self, offset: int, page_count: int) -> Pages:
        bitmap = np.empty(-(-page_count // 8), np.uint8)
        self._file.read_into(offset, bitmap)
        if page_count % 8:
            bitmap[-1] &= (1 << page_count % 8) - 1
        return bitmap

    def _find_zero_page(self, offset: int, size: int) -> int:
        """Give the offset of the page that zero pages share, -1 where it is not zero.

        makedumpfile and QEMU put it in front of all other page data.
        """
        page = np.empty(size, np.uint8)
        if size > self._file.size - offset:
            return -1
        self._file.read_into(offset, page)
        return -1 if page.any() else offset

    def excluded_pages(self, pfn: int, count: int) -> NDArray[np.bool_] | None:
        """Tell which pages of the first bitmap the second one lacks; None if it lacks none."""
        if not self.excluded_size:
            return None
        return self._known.select(pfn, count) & ~self._stored.select(pfn, count)

    def stored_runs(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Give the first runs of pages of ``[begin, end)`` in the dump; see `PageBitmap.next_runs`."""
        return self._stored.next_runs(begin, end)

    def page_kinds(self, pfn: int, count: int) -> NDArray[np.uint8]:
        """Tell how the dump holds pages, by bitmaps and descriptors; see :meth:`Dump.page_kinds`."""
        kinds = np.full(count, PageKind.MISSING, np.uint8)
        excluded = self.excluded_pages(pfn, count)
        if excluded is not None:
            kinds[excluded] = PageKind.EXCLUDED
        table = self._table(pfn, count)
        found = np.full(len(table.flags), PageKind.PLAIN, np.uint8)
        for flag, kind in _KINDS.items():
            found[table.flags == flag] = kind
        found[table.zero] = PageKind.ZERO
        kinds[table.present] = found
        return kinds

    def stored_pages(self, pfn: int, count: int) -> StoredPages:
        """Give pages as they lie in the file; see :meth:`Dump.stored_pages`."""
        for _ in self.pieces(pfn * self.page_size, (pfn + count) * self.page_size):
            pass
        table = self._table(pfn, count)
        present = table.present
        data, places = self._read_spans(table.offsets, table.sizes)
        return StoredPages(
            data,
            _spread(places, present),
            _spread(table.sizes, present),
            _spread(table.flags, present),
            _spread(table.offsets, present),
            ~present,
            _spread(table.zero, present),
        )

    def _table(self, pfn: int, count: int) -> _Table:
        """Read and check the descriptors of the pages that are in the dump."""
        present = self._stored.select(pfn, count)
        length = int(np.count_nonzero(present))
        itemsize = self._descriptor.itemsize
        rank = self._stored.rank(min(pfn, self._stored.size))
        raw = self._file.read(self.headers.descriptors_offset + rank * itemsize, length * itemsize)
        rows = np.frombuffer(raw, self._descriptor)
        offsets = rows["offset"].astype(np.uint64)
        sizes = rows["size"].astype(np.uint32)
        flags = rows["flags"].astype(np.uint32)
        bad = (sizes == 0) | (sizes > self.page_size) | (offsets > self._file.size)
        bad |= offsets + sizes > self._file.size
        bad |= (flags == 0) & (sizes != self.page_size)
        if bad.any():
            index = int(bad.argmax())
            raise FormatError(
                f"page {pfn + int(np.flatnonzero(present)[index]):#x} is said to be {sizes[index]} bytes at "
                f"{offsets[index]:#x}",
                path=self._file.path,
            )
        unknown = ~np.isin(flags, list(_KINDS))
        if unknown.any():
            flag = flags[int(unknown.argmax())]
            raise FormatError(f"page flags {flag:#x} name no codec", path=self._file.path)
        zero = (flags == 0) & (offsets == np.uint64(max(self._zero_offset, 0)))
        return _Table(present, offsets, sizes, flags, zero & (self._zero_offset >= 0))

    def read_pages(self, pfn: int, out: Pages) -> None:
        """Decompress consecutive pages into ``(count, page_size)`` `out`; those not in the dump are zero."""
        batch = max(_BATCH // self.page_size, 1)
        for begin in range(0, len(out), batch):
            self._read_batch(pfn + begin, out[begin : begin + batch])

    def _read_batch(self, pfn: int, out: Pages) -> None:
        table = self._table(pfn, len(out))
        stored = ~table.zero
        rows = np.flatnonzero(table.present)[stored]
        data, found = self._read_spans(table.offsets[stored], table.sizes[stored])
        flags = table.flags[stored]
        codecs = [int(flag) for flag in np.unique(flags) if flag]
        # Whatever is not unpacked now has the size 0, which is a zero page to an unpacker.
        places, sizes = np.zeros(len(out), np.uint64), np.zeros(len(out), np.uint32)
        packed = np.zeros(len(out), np.uint8)
        places[rows], sizes[rows], packed[rows] = found, table.sizes[stored], flags != 0
        first, others = (codecs or [1])[0], codecs[1:]
        for flag in others:
            sizes[rows[flags == flag]] = 0
        self._unpack(kdump.FLAG_CODECS[first], pfn, None, data, places, sizes, packed, out)
        for flag in others:
            chosen = rows[flags == flag]
            sizes[chosen] = table.sizes[stored][flags == flag]
            self._unpack(kdump.FLAG_CODECS[flag], pfn, chosen, data, places, sizes, packed, out)

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
    ) -> None:
        """Unpack all pages of a batch, or the chosen ones; the compressed ones are of one codec."""
        target = out
        if chosen is not None:
            places, sizes, packed = places[chosen], sizes[chosen], packed[chosen]
            target = np.empty((len(chosen), self.page_size), np.uint8)
        spare = self._spare[codec]
        try:
            unpacker = spare.pop()
        except IndexError:
            unpacker = make_unpacker(codec, self.page_size)
        try:
            unpacker.unpack(data, places, sizes, packed, target.reshape(-1))
        except CodecError as error:
            page = pfn + int(error.page if chosen is None else chosen[error.page])
            raise CodecError(
                f"{self._file.path}: page {page:#x} does not unpack: {error}", engine=error.engine, page=page
            ) from error
        finally:
            spare.append(unpacker)
        if chosen is not None:
            out[chosen] = target

    def _read_spans(
        self, offsets: NDArray[np.uint64], sizes: NDArray[np.uint32]
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
            self._file.read_into(int(begin), data[low:high])
        span_of = np.searchsorted(span_begins, offsets.astype(np.int64), side="right") - 1
        places = span_places[span_of] + (offsets.astype(np.int64) - span_begins[span_of])
        return data, places.astype(np.uint64)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _KdumpMemory:
    """A run of pages that the guest had; those not in the dump are zero."""

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
        if not self._dump.excluded_size:
            yield 0, self.size
            return
        begin, end = self._first_pfn, self._first_pfn + self._page_count
        while len(found := self._dump.stored_runs(begin, end)):
            for low, high in found.tolist():
                yield (low - self._first_pfn) * self._page_size, (high - self._first_pfn) * self._page_size
            begin = int(found[-1, 1])

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


def _spread(values: NDArray[np.generic], present: NDArray[np.bool_]) -> NDArray[Any]:
    """Put values of the pages that are present at their places; the others get 0."""
    spread = np.zeros(len(present), values.dtype)
    spread[present] = values
    return spread
