"""What a worker does with a run of guest memory: fetch it, and pack its pages."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.kernels.engines import PagePacker
from vmdump.pipeline.known import KnownPages
from vmdump.pipeline.plan import Run, Slice, cut_runs
from vmdump.pipeline.workers import SLOTS_BEYOND_THREADS, in_order
from vmdump.sources.base import Pages

__all__ = ["CHUNK_SIZE", "Packed", "fetched", "packed"]

CHUNK_SIZE = 4 << 20
"""Bytes of guest memory in one piece of work: hand-over costs 0.1 ms, packing 4 MiB at least 4 ms."""

_PACK_JOIN = 1 << 20
"""Holes shorter than this are packed as zero pages: finding them zero costs less than a piece of work."""
_FETCH_JOIN = 64 << 10
"""Holes shorter than this are written as zeros: a system call for each would cost more."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed run; the arrays belong to the worker and are valid until the next result is asked for.

    Attributes
    ----------
    data : (n,) uint8
        The pages that are not zero, each compressed or plain, one behind the other.
    sizes : (packed pages,) uint32
        Bytes of each page in `data`: 0 for a zero page, the page size for a plain one.
    hashes : (pages,) uint64 or None
        Of what the pages of the run held, where known pages were given.
    same : (pages,) bool or None
        Pages that are known and therefore were not packed; None if all were packed.
    placed : (pages,) PLACED or None
        Where those went.
    """

    data: Pages
    sizes: NDArray[np.uint32]
    hashes: NDArray[np.uint64] | None = None
    same: NDArray[np.bool_] | None = None
    placed: NDArray[np.void] | None = None


class _Slot:
    """Scratch of one piece of work, allocated when it is first needed."""

    def __init__(
        self, make_packer: Callable[[], PagePacker] | None = None, known: KnownPages | None = None
    ) -> None:
        self.make_packer = make_packer
        self.known = known
        self.packer: PagePacker | None = None
        self.scratch: Pages = np.empty(0, np.uint8)
        self.out: Pages = np.empty(0, np.uint8)

    def fetch(self, run: Run) -> Pages:
        memory = run.block.memory
        if memory.copies and self.scratch.size < run.length:
            self.scratch = np.empty(max(run.length, CHUNK_SIZE), np.uint8)
        return memory.view(run.offset, run.length, self.scratch)

    def pack(self, run: Run) -> Packed:
        if self.packer is None:
            assert self.make_packer is not None
            self.packer = self.make_packer()
        packer = self.packer
        data = self.fetch(run)
        if self.known is None:
            return Packed(*self._pack(packer, data))
        pfn = (run.block.start + run.offset) // packer.page_size
        hashes = self.known.hashes(data)
        same, placed = self.known.unchanged(pfn, hashes)
        if not same.any():
            return Packed(*self._pack(packer, data), hashes)
        changed = data.reshape(-1, packer.page_size)[~same].reshape(-1)
        return Packed(*self._pack(packer, changed), hashes, same, placed)

    def _pack(self, packer: PagePacker, data: Pages) -> tuple[Pages, NDArray[np.uint32]]:
        pages = data.size // packer.page_size
        if self.out.size < packer.bound(pages):
            self.out = np.empty(packer.bound(pages), np.uint8)
        sizes = np.empty(pages, np.uint32)
        used = packer.pack(data, self.out, sizes)
        return self.out[:used], sizes


def _is_hole(run: Run) -> bool:
    return run.hole


def packed(
    slices: Iterable[Slice],
    make_packer: Callable[[], PagePacker],
    *,
    page_size: int,
    threads: int,
    known: KnownPages | None = None,
) -> Generator[tuple[Run, Packed | None]]:
    """Give every run of the slices in order, data packed, holes as None.

    Parameters
    ----------
    slices : iterable of Slice
        Whole pages.
    make_packer : callable
        Makes a packer of `page_size`; called once per slot.
    page_size : int
        Bytes.
    threads : int
        Worker threads.
    known : KnownPages, optional
        Pages that need not be packed again where they hold what they held. Their memory must not change
        while it is read into a buffer of the worker's: `copies` is true for all of it.
    """
    slots = [_Slot(make_packer, known) for _ in range(threads + SLOTS_BEYOND_THREADS)]
    runs = cut_runs(slices, unit=page_size, chunk=CHUNK_SIZE, join=_PACK_JOIN)
    return in_order(runs, _Slot.pack, slots, threads=threads, idle=_is_hole)


def fetched(slices: Iterable[Slice], *, unit: int, threads: int) -> Generator[tuple[Run, Pages | None]]:
    """Give every run of the slices in order, data as bytes, holes as None.

    Parameters
    ----------
    slices : iterable of Slice
        Any bytes.
    unit : int
        Bytes to which the extents are widened.
    threads : int
        Worker threads.
    """
    slots = [_Slot() for _ in range(threads + SLOTS_BEYOND_THREADS)]
    runs = cut_runs(slices, unit=unit, chunk=CHUNK_SIZE, join=_FETCH_JOIN)
    return in_order(runs, _Slot.fetch, slots, threads=threads, idle=_is_hole)
