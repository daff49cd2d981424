"""The memory in an ELF core: one piece behind the other, zeros and what has not changed skipped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Pages
from vmdump.guest.excluded import excluded_ranges
from vmdump.guest.guest import Guest
from vmdump.kernels.scan import CLEARED, NEW
from vmdump.pipeline.ahead import PagesAhead
from vmdump.pipeline.chunks import UNREAD, Scanned, scanned
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import Slice
from vmdump.writers.elf_head import UNIT
from vmdump.writers.lanes import Lane
from vmdump.writers.tally import Tally

__all__ = ["write_memory"]

_SHORT_GAP = 16
"""Units from which on skipping costs less than writing: a direct write of 64 KiB takes as long as the set-up
of another one."""


def write_memory(
    guest: Guest,
    lane: Lane,
    slices: Sequence[Slice],
    tally: Tally,
    *,
    threads: int,
    control: Control,
    record: PagesAhead | None = None,
    ahead: PagesAhead | None = None,
) -> None:
    """Write the memory of slices, one behind the other.

    Parameters
    ----------
    guest : Guest
        The guest; what it excludes is not written.
    lane : Lane
        Where it goes; what is zero is skipped. It stays unfinished.
    slices : sequence of Slice
        The memory.
    tally : Tally
        Its counts are raised.
    threads : int
        Threads that read memory.
    control : Control
        Told of every chunk.
    record : PagesAhead, optional
        Empty; units that are written are noted there.
    ahead : PagesAhead, optional
        Units that were written ahead at the same places: only what has changed is written.

    Raises
    ------
    SourceError, SinkError, Cancelled
    """
    with closing(scanned(slices, unit=UNIT, threads=threads, ahead=record or ahead)) as runs:
        for run, result in runs:
            pfn = (run.block.start + run.offset) // UNIT
            begin = run.block.start + run.offset
            excluded = excluded_ranges(guest, begin, begin + run.length)
            excluded_size = int((excluded[:, 1] - excluded[:, 0]).sum())
            tally.excluded_pages += -(-excluded_size // guest.page_size)
            kept = _kept(excluded, run.length)
            if result is None:
                tally.hole_bytes += run.length - excluded_size
                for low, high in kept:
                    _skip_hole(lane, pfn + low // UNIT, high - low, ahead)
            else:
                written = _write_kept(lane, result, kept)
                tally.changed_pages += written if ahead else 0
                if record and result.hashes is not None and written:
                    record.record(pfn, result.hashes)
            control.advance(run.length)


def _kept(excluded: NDArray[np.int64], length: int) -> list[tuple[int, int]]:
    """Give the ranges of a run that are not excluded."""
    begins = np.concatenate(([0], excluded[:, 1])).tolist()
    ends = np.concatenate((excluded[:, 0], [length])).tolist()
    return [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]


def _write_kept(lane: Lane, result: Scanned, kept: list[tuple[int, int]]) -> int:
    """Write ranges of a run; give the units of them that were not as they were."""
    kinds, data = result.kinds, result.data
    if kept != [(0, data.size)]:
        if not kept:
            return 0
        data = np.concatenate([data[begin:end] for begin, end in kept])
        if any(begin % UNIT for begin, _ in kept):
            lane.write(data)
            return -(-data.size // UNIT)
        kinds = np.concatenate([kinds[begin // UNIT : -(-end // UNIT)] for begin, end in kept])
    return _write_units(lane, data, kinds)


def _write_units(lane: Lane, data: Pages, kinds: NDArray[np.uint8]) -> int:
    """Write the changed units, with short gaps between them, and skip the others; give how many changed."""
    units = np.flatnonzero((kinds == NEW) | (kinds == CLEARED))
    position = 0
    if units.size:
        unread = np.cumsum(kinds == UNREAD)[units]
        gaps = np.flatnonzero((np.diff(units) > _SHORT_GAP) | (np.diff(unread) > 0))
        begins = units[np.concatenate(([0], gaps + 1))] * UNIT
        ends = (units[np.concatenate((gaps, [-1]))] + 1) * UNIT
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            lane.skip(begin - position)
            lane.write(data[begin:end])
            position = min(end, data.size)
    lane.skip(data.size - position)
    return int(units.size)


def _skip_hole(lane: Lane, pfn: int, length: int, ahead: PagesAhead | None) -> None:
    """Skip memory that is known to be zero; what was written of it ahead becomes zeros."""
    position = 0
    if ahead:
        for begin, end in ahead.recorded(pfn, length // UNIT):
            lane.skip((begin - pfn) * UNIT - position)
            position = (end - pfn) * UNIT
            lane.clear((end - begin) * UNIT)
    lane.skip(length - position)
