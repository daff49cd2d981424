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
from vmdump.pipeline.chunks import Scanned, scanned
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
            if result is None:
                tally.hole_bytes += run.length - excluded_size
                _skip_hole(lane, pfn, run.length - excluded_size, ahead)
            elif excluded_size:
                _write_kept(lane, result, excluded)
            else:
                written = (result.kinds == NEW) | (result.kinds == CLEARED)
                tally.changed_pages += int(np.count_nonzero(written)) if ahead else 0
                _write_units(lane, result.data, written)
                if record and result.hashes is not None and written.any():
                    record.record(pfn, result.hashes)
            control.advance(run.length)


def _write_kept(lane: Lane, result: Scanned, excluded: NDArray[np.int64]) -> None:
    """Write a run without the ranges that are excluded."""
    begins = np.concatenate(([0], excluded[:, 1])).tolist()
    ends = np.concatenate((excluded[:, 0], [result.data.size])).tolist()
    pieces = [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]
    if not pieces:
        return
    data = np.concatenate([result.data[begin:end] for begin, end in pieces])
    if all(begin % UNIT == 0 for begin, _ in pieces):
        kinds = np.concatenate([result.kinds[begin // UNIT : -(-end // UNIT)] for begin, end in pieces])
        _write_units(lane, data, kinds == NEW)
    else:
        lane.write(data)


def _write_units(lane: Lane, data: Pages, written: NDArray[np.bool_]) -> None:
    """Write some units of a run, together with short gaps between them, and skip the others."""
    units = np.flatnonzero(written)
    position = 0
    if units.size:
        gaps = np.flatnonzero(np.diff(units) > _SHORT_GAP)
        begins = units[np.concatenate(([0], gaps + 1))] * UNIT
        ends = (units[np.concatenate((gaps, [-1]))] + 1) * UNIT
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            lane.skip(begin - position)
            lane.write(data[begin:end])
            position = min(end, data.size)
    lane.skip(data.size - position)


def _skip_hole(lane: Lane, pfn: int, length: int, ahead: PagesAhead | None) -> None:
    """Skip memory that is known to be zero; what was written of it ahead becomes zeros."""
    position = 0
    if ahead:
        for begin, end in ahead.recorded(pfn, length // UNIT):
            lane.skip((begin - pfn) * UNIT - position)
            position = (end - pfn) * UNIT
            lane.clear((end - begin) * UNIT)
    lane.skip(length - position)
