"""What a worker does with a run of guest memory: read it, tell its pages apart, and pack them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from vmdump.codecs.registry import PagePacker
from vmdump.guest.blocks import FileRuns, Pages, file_runs
from vmdump.kernels.gather import gather
from vmdump.kernels.pack import SAME_SIZE
from vmdump.kernels.scan import NEW, RUN_WORDS, ZERO, PageScan
from vmdump.pipeline.ahead import PagesAhead
from vmdump.pipeline.copied import CopiedPages
from vmdump.pipeline.plan import Run, Slice, cut_runs
from vmdump.pipeline.workers import SLOTS_BEYOND_THREADS, in_order
from vmdump.units import align_up

__all__ = ["ALIGNMENT", "CHUNK_SIZE", "UNREAD", "Packed", "Scanned", "packed", "scanned"]

UNREAD = 4
"""Kind of a unit that is as it was, and was not read for the run: somebody else has."""
CHUNK_SIZE = 8 << 20
"""Bytes of guest memory in one piece of work: hand-over and bookkeeping take Python 0.2 ms, finding 8 MiB of
zeros 1.4 ms, packing 8 MiB by LZO 12 ms."""

_PACK_JOIN = 1 << 20
"""Holes shorter than this are packed as zero pages: finding them zero costs less than a piece of work."""
_SCAN_JOIN = 64 << 10
"""Holes shorter than this are read as zeros."""
ALIGNMENT = 4096
"""What a write that bypasses the page cache demands of its buffer."""


class Packed(NamedTuple):
    """A packed run; the arrays belong to the worker and are valid until the next result is asked for.

    Attributes
    ----------
    data : (n,) uint8
        The new pages that are not zero, each compressed or plain, one behind the other. It may be changed;
        it begins and ends at multiples of ALIGNMENT in memory, so its end may mean nothing.
    sizes : (pages,) uint32
        Bytes of each page in `data`: 0 for a zero page, the page size for a plain one, SAME_SIZE for one
        that is as it was when it was packed ahead.
    hashes : (pages,) uint64 or None
        Of what the pages hold, 0 for zeros, where a key was given.
    places : (pages,) PLACE or None
        Where pages went that were packed ahead.
    copied : int
        Pages that were packed already.
    """

    data: Pages
    sizes: NDArray[np.uint32]
    hashes: NDArray[np.uint64] | None = None
    places: NDArray[np.void] | None = None
    copied: int = 0


class Scanned(NamedTuple):
    """A run that was read; the arrays belong to the worker and are valid until the next result is asked for.

    Attributes
    ----------
    data : (n,) uint8
        All bytes of the run, but zeros for units that are UNREAD.
    kinds : (units,) uint8
        Of each unit, the last of which may be a part of one: ZERO, SAME, CLEARED, NEW or UNREAD.
    hashes : (units,) uint64 or None
        Of what the units hold, 0 for zeros, where pages ahead were given.
    """

    data: Pages
    kinds: NDArray[np.uint8]
    hashes: NDArray[np.uint64] | None = None


class _Hashing(TypedDict, total=False):
    key: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    known: NDArray[np.uint64]


def _aligned(size: int) -> Pages:
    raw = np.empty(size + ALIGNMENT, np.uint8)
    skipped = -raw.ctypes.data % ALIGNMENT
    return raw[skipped : skipped + size]


class _Slot:
    """What a result lies in, allocated when it is first needed."""

    def __init__(self) -> None:
        self._buffer: Pages = np.empty(0, np.uint8)

    def buffer(self, size: int) -> Pages:
        """Give at least `size` bytes, aligned for a direct write."""
        if self._buffer.size < size:
            self._buffer = _aligned(align_up(size, ALIGNMENT))
        return self._buffer


class _Worker(threading.local):
    """What one thread reads and packs with; made anew in each thread that uses it."""

    def __init__(
        self,
        page_size: int,
        ahead: PagesAhead | None,
        key: NDArray[np.uint64] | None,
        make_packer: Callable[[], PagePacker] | None = None,
        copied: CopiedPages | None = None,
    ) -> None:
        self._page_size = page_size
        self._ahead = ahead
        self._key = key
        self._make_packer = make_packer
        self._copied_pages = copied
        self._made: PagePacker | None = None
        self._scratch: Pages = np.empty(0, np.uint8)

    @property
    def _packer(self) -> PagePacker:
        if self._made is None:
            assert self._make_packer is not None
            self._made = self._make_packer()
        return self._made

    def pack(self, slot: _Slot, run: Run) -> Packed:
        if self._copied_pages is not None:
            result = self._copy(self._copied_pages, slot, run)
            if result is not None:
                return result
        packer = self._packer
        pages = run.length // self._page_size
        sizes = np.empty(pages, np.uint32)
        out = slot.buffer(packer.bound(pages))
        hashes, options, places, same = self._hashing(run)
        runs = file_runs(run.block.memory, run.offset, run.length)
        if runs is not None:
            # Where that fails, the memory itself reads again, or raises the right error.
            with suppress(OSError):
                used = packer.pack(self._scan_files(runs, pages, options, same), out, sizes)
                if same is not None and hashes is not None:
                    sizes[same], hashes[same] = SAME_SIZE, options["known"][same]
                return Packed(out[: align_up(used, ALIGNMENT)], sizes, hashes, places)
        if run.block.memory.copies and self._scratch.size < run.length:
            self._scratch = np.empty(max(run.length, CHUNK_SIZE), np.uint8)
        data = run.block.memory.view(run.offset, run.length, self._scratch)
        used = packer.pack(PageScan(data, self._page_size, **options), out, sizes)
        return Packed(out[: align_up(used, ALIGNMENT)], sizes, hashes, places)

    def _copy(self, copied: CopiedPages, slot: _Slot, run: Run) -> Packed | None:
        """Copy pages of a run that are packed as wanted, pack the others; None if all are to be packed."""
        page_size = self._page_size
        stored = copied.stored((run.block.start + run.offset) // page_size, run.length // page_size)
        if stored is None:
            return None
        wanted = copied.wanted(stored, page_size)
        others = np.flatnonzero(~(wanted | copied.without_data(stored)))
        if others.size and not wanted.any():
            return None
        hashes = copied.hashes(stored)
        sizes, offsets, data = np.where(wanted, stored.sizes, np.uint32(0)), stored.offsets, stored.data
        if others.size:
            memory, scratch = run.block.memory, np.empty(run.length, np.uint8)
            # Where pages are unpacked one by one, none is that will be copied.
            view_without = getattr(memory, "view_without", None)
            if view_without is None:
                pages = memory.view(run.offset, run.length, scratch)
            else:
                without = np.ones(sizes.size, np.bool_)
                without[others] = False
                pages = view_without(run.offset, run.length, scratch, without)
            rest = pages.reshape(-1, page_size)[others].reshape(-1)
            out, rest_sizes = (
                np.empty(self._packer.bound(others.size), np.uint8),
                np.empty(others.size, np.uint32),
            )
            rest_hashes = np.empty(others.size, np.uint64)
            scan = PageScan(rest, page_size, key=copied.key, hashes=rest_hashes)
            used = self._packer.pack(scan, out, rest_sizes)
            sizes[others], hashes[others], offsets = rest_sizes, rest_hashes, offsets.copy()
            offsets[others] = np.cumsum(rest_sizes, dtype=np.uint64) - rest_sizes + np.uint64(data.size)
            data = np.concatenate((data, out[:used]))
        target = slot.buffer(int(sizes.sum(dtype=np.uint64)))
        used = gather(data, offsets, sizes, target)
        return Packed(
            target[: align_up(used, ALIGNMENT)], sizes, hashes, copied=int(np.count_nonzero(wanted))
        )

    def scan(self, slot: _Slot, run: Run) -> Scanned:
        pages, rest = divmod(run.length, self._page_size)
        kinds = np.empty(pages + (rest > 0), np.uint8)
        buffer = slot.buffer(run.length)
        hashes, options, _, same = self._hashing(run)
        runs = None if rest else file_runs(run.block.memory, run.offset, run.length)
        if runs is not None:
            with suppress(OSError):  # as in pack
                data = self._scan_files(runs, pages, options, same).read(kinds, buffer)
                if same is not None and hashes is not None:
                    kinds[same], hashes[same] = UNREAD, options["known"][same]
                return Scanned(data, kinds, hashes)
        data = run.block.memory.view(run.offset, run.length, buffer)
        if options and not run.block.memory.copies:
            # What is hashed must be what is written.
            buffer[: run.length] = data
            data = buffer[: run.length]
        PageScan(data[: run.length - rest], self._page_size, **options).read(kinds[:pages])
        kinds[pages:] = NEW if data[run.length - rest :].any() else ZERO
        return Scanned(data, kinds, hashes)

    def _scan_files(
        self, runs: FileRuns, pages: int, options: _Hashing, same: NDArray[np.bool_] | None
    ) -> PageScan:
        table = np.array(runs, np.int64).reshape(-1, RUN_WORDS)
        if same is not None:
            table = _without(table, same, self._page_size)
        return PageScan(None, self._page_size, runs=table, page_count=pages, **options)

    def _hashing(
        self, run: Run
    ) -> tuple[NDArray[np.uint64] | None, _Hashing, NDArray[np.void] | None, NDArray[np.bool_] | None]:
        """Give what a scan needs, where pages went that are as they were, and which of them are not read."""
        if self._key is None:
            return None, {}, None, None
        pages = run.length // self._page_size
        hashes = np.empty(pages, np.uint64)
        pfn = (run.block.start + run.offset) // self._page_size
        found = None if self._ahead is None else self._ahead.read(pfn, pages)
        if self._ahead is None or found is None:
            return hashes, {"key": self._key, "hashes": hashes}, None, None
        known, places = found
        same = self._ahead.unchanged(pfn, known)
        return hashes, {"key": self._key, "hashes": hashes, "known": known}, places, same


def _without(table: NDArray[np.int64], pages: NDArray[np.bool_], page_size: int) -> NDArray[np.int64]:
    """Take pages out of runs of files."""
    kept = np.flatnonzero(np.diff(~pages, prepend=False, append=False)).astype(np.int64).reshape(-1, 2)
    kept *= page_size
    first = np.searchsorted(kept[:, 1], table[:, 0], side="right")
    count = np.searchsorted(kept[:, 0], table[:, 1]) - first
    row = np.repeat(np.arange(len(table)), count)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    cut = table[row]
    cut[:, 0] = np.maximum(cut[:, 0], kept[piece, 0])
    cut[:, 1] = np.minimum(cut[:, 1], kept[piece, 1])
    cut[:, 3] += cut[:, 0] - table[row, 0]
    return cut


def _is_hole(run: Run) -> bool:
    return run.hole


def packed(
    slices: Iterable[Slice],
    make_packer: Callable[[], PagePacker],
    *,
    page_size: int,
    threads: int,
    key: NDArray[np.uint64] | None = None,
    ahead: PagesAhead | None = None,
    copied: CopiedPages | None = None,
) -> Generator[tuple[Run, Packed | None]]:
    """Give every run of the slices in order, data packed, holes as None.

    Parameters
    ----------
    slices : iterable of Slice
        Whole pages.
    make_packer : callable
        Makes a packer of `page_size`; called once per thread.
    page_size : int
        Bytes.
    threads : int
        Worker threads.
    key : (KEY_WORDS,) uint64, optional
        Of the pages' hashes; without it no page is hashed.
    ahead : PagesAhead, optional
        Pages that need not be packed again where they hold what they held; with its `key`.
    copied : CopiedPages, optional
        Pages that are copied as they are stored, where they are packed as wanted.
    """
    slots = [_Slot() for _ in range(threads + SLOTS_BEYOND_THREADS)]
    runs = cut_runs(slices, unit=page_size, chunk=CHUNK_SIZE, join=_PACK_JOIN)
    worker = _Worker(page_size, ahead, key, make_packer, copied)
    return in_order(runs, worker.pack, slots, threads=threads, idle=_is_hole)


def scanned(
    slices: Iterable[Slice], *, unit: int, threads: int, ahead: PagesAhead | None = None
) -> Generator[tuple[Run, Scanned | None]]:
    """Give every run of the slices in order, data as bytes, holes as None.

    Parameters
    ----------
    slices : iterable of Slice
        Any bytes; whole units where there are pages ahead.
    unit : int
        Bytes to which the extents are widened, and of which is told what they hold.
    threads : int
        Worker threads.
    ahead : PagesAhead, optional
        Of that unit; as for :func:`packed`.
    """
    slots = [_Slot() for _ in range(threads + SLOTS_BEYOND_THREADS)]
    runs = cut_runs(slices, unit=unit, chunk=CHUNK_SIZE, join=_SCAN_JOIN)
    worker = _Worker(unit, ahead, ahead.key if ahead else None)
    return in_order(runs, worker.scan, slots, threads=threads, idle=_is_hole)
