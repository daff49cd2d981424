"""The table of page descriptors, built while the pages go by."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import SinkError
from vmdump.formats.kdump import PAGE_DESCRIPTOR
from vmdump.formats.layout import ByteOrder
from vmdump.pipeline.ahead import PLACE
from vmdump.units import align_up
from vmdump.writers.lanes import Lane
from vmdump.writers.tally import Tally

__all__ = ["DescriptorTable"]

_BATCH = 1 << 16
"""Descriptors made at a time: 1.5 MiB."""
_SPOOL_IN_MEMORY = 32 << 20
"""Bytes kept in memory, 12 a page that is not in a hole: 10 GiB of 4 KiB pages. Beyond, a temporary file."""


class DescriptorTable:
    """Turns the places of pages into descriptors, at once or when all pages are there.

    Parameters
    ----------
    byteorder : {"little", "big"}
        The guest's.
    codec_flag : int
        Flag of a compressed page.
    page_size : int
        Bytes.
    zero_offset : int
        File offset of the shared zero page.
    lane : Lane or None
        Where descriptors go as pages are added; None keeps the places until :meth:`finish`.
    tally : Tally
        Its page counts are raised.
    """

    def __init__(
        self,
        byteorder: ByteOrder,
        codec_flag: int,
        page_size: int,
        zero_offset: int,
        lane: Lane | None,
        tally: Tally,
    ) -> None:
        self._dtype = PAGE_DESCRIPTOR.dtype(byteorder)
        self._codec_flag = codec_flag
        self._page_size = page_size
        self._zero_offset = zero_offset
        self._lane = lane
        self._tally = tally
        self._spool: IO[bytes] = io.BytesIO()
        self._spooled: list[tuple[bool, int]] = []
        self._zero_batch: NDArray[np.void] = np.empty(0, self._dtype)

    def add(self, places: NDArray[np.void]) -> None:
        """Add pages, by their places in the file; (n,) PLACE."""
        zero = int(np.count_nonzero(places["offset"] == self._zero_offset))
        whole = int(np.count_nonzero(places["size"] == self._page_size))
        self._tally.zero_pages += zero
        self._tally.plain_pages += whole - zero
        self._tally.compressed_pages += places.size - whole
        if self._lane is None:
            self._keep(places)
        else:
            self._emit(places, self._lane)

    def add_zero_pages(self, count: int) -> None:
        """Add pages of a hole."""
        self._tally.zero_pages += count
        if self._lane is None:
            self._remember(True, count)
        else:
            self._emit_zero_pages(count, self._lane)

    def finish(self, lane: Lane) -> None:
        """Write what was kept so far, and hand the lane over to the operating system."""
        with self._spool_errors():
            self._spool.seek(0)
        for is_hole, count in self._spooled:
            if is_hole:
                self._emit_zero_pages(count, lane)
                continue
            for places in self._read(count):
                self._emit(places, lane)
        lane.finish()
        self._spooled.clear()
        with self._spool_errors():
            self._spool.seek(0)
            self._spool.truncate()

    def finish_partly(self, lane: Lane, most: int, end: int) -> int:
        """Write the first of those that were kept, up to one whose data are not in the file.

        Parameters
        ----------
        lane : Lane
            Where they go.
        most : int
            Descriptors to write at most.
        end : int
            Bytes of the file.

        Returns
        -------
        int
            How many were written.
        """
        written = 0
        with self._spool_errors():
            self._spool.seek(0)
        for is_hole, count in self._spooled:
            count = min(count, most - written)
            if is_hole:
                self._emit_zero_pages(count, lane)
                written += count
                continue
            for places in self._read(count):
                lost = np.flatnonzero(places["offset"] + places["size"] > np.uint64(end))
                there = places[: lost[0]] if lost.size else places
                self._emit(there, lane)
                written += there.size
                if lost.size:
                    lane.finish()
                    return written
        lane.finish()
        return written

    def _read(self, count: int) -> Iterator[NDArray[np.void]]:
        """Read places of the spool from where it is, some at a time."""
        for begin in range(0, count, _BATCH):
            with self._spool_errors():
                raw = self._spool.read(PLACE.itemsize * min(_BATCH, count - begin))
            yield np.frombuffer(raw, PLACE)

    def close(self) -> None:
        """Give back the temporary file."""
        # Closing flushes, which fails again where writing has failed.
        with contextlib.suppress(OSError):
            self._spool.close()

    @contextlib.contextmanager
    def _spool_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            import tempfile

            raise SinkError(
                "cannot keep the places of the pages",
                path=tempfile.gettempdir(),
                errno=error.errno,
                hint="TMPDIR names another folder",
            ) from error

    def _keep(self, places: NDArray[np.void]) -> None:
        with self._spool_errors():
            self._spool.write(places.tobytes())
            if isinstance(self._spool, io.BytesIO) and self._spool.tell() > _SPOOL_IN_MEMORY:
                import tempfile  # 11 modules more, and few guests are so large

                in_memory = self._spool.getbuffer()
                self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
                self._spool.write(in_memory)
        self._remember(False, places.size)

    def _remember(self, is_hole: bool, count: int) -> None:
        if self._spooled and self._spooled[-1][0] == is_hole:
            count += self._spooled.pop()[1]
        self._spooled.append((is_hole, count))

    def _emit(self, places: NDArray[np.void], lane: Lane) -> None:
        table: NDArray[np.void] = np.zeros(places.size, self._dtype)
        table["offset"] = places["offset"]
        table["size"] = places["size"]
        table["flags"] = np.where(
            places["size"] == self._page_size, np.uint32(0), np.uint32(self._codec_flag)
        )
        lane.write(table.view(np.uint8))

    def _emit_zero_pages(self, count: int, lane: Lane) -> None:
        if self._zero_batch.size < min(count, _BATCH):
            self._zero_batch = np.zeros(min(align_up(count, 1 << 12), _BATCH), self._dtype)
            self._zero_batch["offset"] = self._zero_offset
            self._zero_batch["size"] = self._page_size
        raw = self._zero_batch.view(np.uint8)
        for begin in range(0, count, _BATCH):
            lane.write(raw[: min(_BATCH, count - begin) * self._dtype.itemsize])
