"""A flattened file put in place: its standard layout, without writing it out."""

from __future__ import annotations

import heapq
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError, SourceError
from vmdump.formats import flattened
from vmdump.guest.blocks import HasDescriptor, Memory, Pages
from vmdump.kernels import records
from vmdump.readers.bytes.file import PartMemory, RawBytes, demand_inside, read_bytes

__all__ = ["FlattenedBytes"]

_MAX_OVERLAPPING = 1 << 16
"""Records: makedumpfile writes a header twice, never a file."""

_LAST_OFFSET = 1 << 62

_Numbers = NDArray[np.uint64]


class FlattenedBytes:
    """The standard layout of a flattened file.

    Records may come in any order. Where one overlaps another, the later one counts, as it does for
    ``makedumpfile -R``.

    Parameters
    ----------
    raw : RawBytes
        The flattened file; owned from now on.
    damaged : bool
        Take what is left: the records up to the first invalid one, and the first part of one that the end
        of the file cuts.

    Raises
    ------
    FormatError
        A record is outside the file, or the end mark is missing.
    """

    def __init__(self, raw: RawBytes, *, damaged: bool = False) -> None:
        self._raw = raw
        self.path = raw.path
        try:
            begins, ends, places, bad = records.scan(raw.stream, raw.size, flattened.FILE_HEADER_SIZE)
        except OSError as error:
            raise self._failed(error) from error
        if bad is not None and damaged:
            begins, ends, places = self._with_cut_record(begins, ends, places, bad)
        elif bad is not None:
            raise FormatError(
                "no flattened record, and no end mark: the file is cut short or damaged, see 'vmdump repair'",
                path=self.path,
                offset=bad,
            )
        if np.any(begins[1:] < begins[:-1]):
            order = np.argsort(begins, kind="stable")
            begins, ends, places = begins[order], ends[order], places[order]
        if np.any(begins[1:] < ends[:-1]):
            begins, ends, places = self._resolve(begins, ends, places)
        self._records = begins, ends, places
        self.size = int(ends[-1]) if len(ends) else 0

    def _with_cut_record(
        self, begins: _Numbers, ends: _Numbers, places: _Numbers, at: int
    ) -> tuple[_Numbers, ...]:
        """Add the first part of the record at `at`, if the end of the file cuts it."""
        place = at + flattened.RECORD.size
        there = self._raw.size - place
        if there <= 0:
            return begins, ends, places
        record = flattened.RECORD.unpack(self._raw.read(at, flattened.RECORD.size), 0, flattened.BYTEORDER)
        if not (0 <= record["offset"] < _LAST_OFFSET and record["size"] > there):
            return begins, ends, places
        begin = record["offset"]
        added = ((begins, begin), (ends, begin + there), (places, place))
        return tuple(np.append(array, np.uint64(value)) for array, value in added)

    def runs(self) -> tuple[_Numbers, _Numbers]:
        """Give begins and ends of what records hold, ascending; runs that touch are one."""
        begins, ends, _ = self._records
        apart = begins[1:] > ends[:-1]
        return begins[np.append(True, apart)[: len(begins)]], ends[np.append(apart, True)[-len(ends) :]]

    def _resolve(self, begins: _Numbers, ends: _Numbers, places: _Numbers) -> tuple[_Numbers, ...]:
        """Cut records that overlap, so that of each byte the later one remains."""
        reach = np.maximum.accumulate(ends)
        joined = np.zeros(len(begins), np.bool_)
        joined[1:] = begins[1:] < reach[:-1]
        involved = joined.copy()
        involved[:-1] |= joined[1:]
        if np.count_nonzero(involved) > _MAX_OVERLAPPING:
            raise FormatError(
                f"more than {_MAX_OVERLAPPING} flattened records overlap",
                path=self.path,
                offset=int(places[involved.argmax()]),
            )
        pieces = np.array(
            _cut(begins[involved].tolist(), ends[involved].tolist(), places[involved].tolist()), np.uint64
        )
        alone = ~involved
        begins = np.concatenate((begins[alone], pieces[:, 0]))
        order = np.argsort(begins, kind="stable")
        ends = np.concatenate((ends[alone], pieces[:, 1]))
        places = np.concatenate((places[alone], pieces[:, 2]))
        return begins[order], ends[order], places[order]

    def _failed(self, error: OSError) -> SourceError:
        what = "cannot read" if error.errno else "the file has become shorter since it was opened"
        return SourceError(what, path=self.path, errno=error.errno)

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset` of the standard layout; what no record holds is zero."""
        demand_inside(self, offset, out.size)
        try:
            records.read(self._raw.stream, self._raw.size, *self._records, offset, out)
        except OSError as error:
            if isinstance(error, SourceError):
                raise
            raise self._failed(error) from error

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset` of the standard layout."""
        return read_bytes(self, offset, length)

    def memory(self, offset: int, size: int, filled: int) -> Memory:
        """Give guest memory that lies in the standard layout."""
        return PartMemory(self, offset, size, filled)

    @property
    def allocated(self) -> int:
        """Bytes that the flattened file occupies."""
        return self._raw.allocated

    @property
    def files(self) -> tuple[HasDescriptor, ...]:
        """The flattened file, if it is one."""
        return self._raw.files

    def close(self) -> None:
        """Close the file."""
        self._raw.close()


def _cut(begins: list[int], ends: list[int], places: list[int]) -> list[tuple[int, int, int]]:
    """Sweep over sorted records; of all that are between two bounds, the one last in the file counts."""
    bounds = sorted({*begins, *ends})
    pieces = []
    there: list[tuple[int, int, int]] = []
    next_record = 0
    for low, high in pairwise(bounds):
        while next_record < len(begins) and begins[next_record] <= low:
            place = places[next_record]
            heapq.heappush(there, (-place, ends[next_record], begins[next_record]))
            next_record += 1
        while there and there[0][1] <= low:
            heapq.heappop(there)
        if there:
            last, _, begin = there[0]
            pieces.append((low, high, low - begin - last))
    return pieces
