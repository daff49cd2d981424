"""The table of page descriptors, built while the pages go by."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import SinkError
from vmdump.formats.kdump import PAGE_DESCRIPTOR
from vmdump.formats.layout import ByteOrder
from vmdump.writers.lanes import Lane
from vmdump.writers.tally import Tally

__all__ = ["DescriptorTable"]

_BATCH = 1 << 16
"""Descriptors made at a time: 1.5 MiB."""
_SPOOL_IN_MEMORY = 32 << 20
"""Bytes kept in memory, 4 a page that is not in a hole: 32 GiB of 4 KiB pages. Beyond, a temporary file."""


class DescriptorTable:
    """Turns page sizes into descriptors, at once or when all pages are there.

    Page data is stored in the order of the pages, behind one zero page that all zero pages share.

    Parameters
    ----------
    byteorder : {"little", "big"}
        The guest's.
    codec_flag : int
        Flag of a compressed page.
    page_size : int
        Bytes.
    data_offset : int
        File offset of the shared zero page.
    lane : Lane or None
        Where descriptors go as pages are added; None keeps the sizes until :meth:`finish`.
    tally : Tally
        Its page counts are raised.
    """

    def __init__(
        self,
        byteorder: ByteOrder,
        codec_flag: int,
        page_size: int,
        data_offset: int,
        lane: Lane | None,
        tally: Tally,
    ) -> None:
        self._dtype = PAGE_DESCRIPTOR.dtype(byteorder)
        self._codec_flag = codec_flag
        self._page_size = page_size
        self._zero_offset = data_offset
        self._next_offset = data_offset + page_size
        self._lane = lane
        self._tally = tally
        self._spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_IN_MEMORY)  # noqa: SIM115 - closed by close()
        self._spooled: list[tuple[bool, int]] = []

    def add(self, sizes: NDArray[np.uint32]) -> None:
        """Add pages: 0 for a zero page, the page size for a plain one, else the compressed size in bytes."""
        if not sizes.size:
            return
        zero = int(np.count_nonzero(sizes == 0))
        plain = int(np.count_nonzero(sizes == self._page_size))
        self._tally.zero_pages += zero
        self._tally.plain_pages += plain
        self._tally.compressed_pages += sizes.size - zero - plain
        if self._lane is None:
            with self._spool_errors():
                self._spool.write(sizes.data)
            self._remember(False, sizes.size)
        else:
            self._emit(sizes, self._lane)

    def add_zero_pages(self, count: int) -> None:
        """Add pages of a hole."""
        self._tally.zero_pages += count
        if self._lane is None:
            self._remember(True, count)
        else:
            self._emit_zero_pages(count, self._lane)

    def finish(self, lane: Lane) -> None:
        """Write what was kept, and hand the lane over to the operating system."""
        with self._spool_errors():
            self._spool.seek(0)
        for is_hole, count in self._spooled:
            if is_hole:
                self._emit_zero_pages(count, lane)
                continue
            for begin in range(0, count, _BATCH):
                batch = min(_BATCH, count - begin)
                with self._spool_errors():
                    raw = self._spool.read(4 * batch)
                self._emit(np.frombuffer(raw, np.uint32), lane)
        self._spooled.clear()
        lane.finish()

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
            raise SinkError(
                "cannot keep the page sizes",
                path=tempfile.gettempdir(),
                errno=error.errno,
                hint="TMPDIR names another folder",
            ) from error

    def _remember(self, is_hole: bool, count: int) -> None:
        if self._spooled and self._spooled[-1][0] == is_hole:
            count += self._spooled.pop()[1]
        self._spooled.append((is_hole, count))

    def _emit(self, sizes: NDArray[np.uint32], lane: Lane) -> None:
        zero = sizes == 0
        ends = self._next_offset + np.cumsum(sizes, dtype=np.uint64)
        table: NDArray[np.void] = np.zeros(sizes.size, self._dtype)
        table["offset"] = np.where(zero, np.uint64(self._zero_offset), ends - sizes)
        table["size"] = np.where(zero, np.uint32(self._page_size), sizes)
        table["flags"] = np.where(
            zero | (sizes == self._page_size), np.uint32(0), np.uint32(self._codec_flag)
        )
        self._next_offset = int(ends[-1])
        lane.write(table.view(np.uint8))

    def _emit_zero_pages(self, count: int, lane: Lane) -> None:
        batch: NDArray[np.void] = np.zeros(min(count, _BATCH), self._dtype)
        batch["offset"] = self._zero_offset
        batch["size"] = self._page_size
        raw = batch.view(np.uint8)
        for begin in range(0, count, _BATCH):
            lane.write(raw[: min(_BATCH, count - begin) * self._dtype.itemsize])
