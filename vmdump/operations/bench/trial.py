"""How fast and how small one engine packs a sample of pages, on one processor."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmdump.codecs.registry import Engine, make_packer, make_unpacker
from vmdump.errors import CodecError
from vmdump.guest.blocks import Pages

__all__ = ["Trial", "estimate_ratios"]

_BUDGET = 0.1
"""Seconds of a round: long enough for 0.3 MB at 3 MB/s (zstd 19), short enough for 57 trials in 20 s."""
_LEAST = 128 << 10
"""Bytes that a round packs in any case."""
_CALL = 1 << 20
"""Most bytes in one call: a call costs some microseconds, 1 MiB at least 0.5 ms."""


class Trial:
    """An engine at one level, on its way through the pages.

    Parameters
    ----------
    engine : Engine
        Usable.
    level : int
        Of the engine.
    pages : (n, page_size) uint8, C-contiguous
        At least one; all with data.
    training : (m * page_size,) uint8, C-contiguous
        What the engine is trained on before, where this is a level of that kind.

    Attributes
    ----------
    speeds : list of float
        Bytes a second of processor time, round by round.
    sizes : (n,) uint32
        Bytes of each page, packed; of the first `covered` pages.
    covered : int
        Pages that were packed so far.
    """

    def __init__(self, engine: Engine, level: int, pages: Pages, training: Pages) -> None:
        self.engine = engine
        self.level = level
        self.speeds: list[float] = []
        self.sizes: NDArray[np.uint32] = np.zeros(len(pages), np.uint32)
        self.covered = 0
        self._pages = pages
        self._at = 0
        page_size = pages.shape[1]
        self._least = max(_LEAST // page_size, 1)
        self._packer = make_packer(engine, page_size, level)
        if level == engine.trained_level:
            self._packer.train(training)
        self._unpacker = make_unpacker(engine.codec, page_size)
        self._out: Pages = np.zeros(self._packer.bound(max(_CALL // page_size, self._least)), np.uint8)
        # What a context allocates it touches with its first page; a dump has that once in each thread.
        self._pack(1)
        self._at = self.covered = 0

    def round(self) -> None:
        """Pack for some 0.1 s, at least 128 KiB and at most all pages once, and check what came last.

        Raises
        ------
        CodecError
            The engine failed, or its result does not unpack to the page.
        """
        packed = count = 0
        seconds = 0.0
        most = max(_CALL // self._pages.shape[1], self._least)
        while packed < len(self._pages) and (packed < self._least or seconds < _BUDGET):
            count = self._least
            if packed:
                count = min(max(int(packed / seconds * (_BUDGET - seconds)), 1), most)
            count = min(count, len(self._pages) - packed, len(self._pages) - self._at)
            # The processor's time, not the clock's: it leaves out what others run on this machine.
            began = time.thread_time()
            self._pack(count)
            seconds += max(time.thread_time() - began, 1e-9)
            packed += count
        self.speeds.append(packed * self._pages.shape[1] / seconds)
        self._check(count)

    def _pack(self, count: int) -> None:
        begin, end = self._at, self._at + count
        self._packer.pack(self._pages[begin:end].reshape(-1), self._out, self.sizes[begin:end])
        self.covered = max(self.covered, end)
        self._at = end % len(self._pages)

    def _check(self, count: int) -> None:
        """Unpack the last `count` pages and compare them."""
        end = self._at or len(self._pages)
        pages, sizes = self._pages[end - count : end], self.sizes[end - count : end]
        offsets = np.cumsum(sizes, dtype=np.uint64) - sizes
        compressed = (sizes != self._pages.shape[1]).astype(np.uint8)
        out = np.empty_like(pages)
        self._unpacker.unpack(self._out, offsets, sizes, compressed, out.reshape(-1))
        bad = np.flatnonzero((out != pages).any(axis=1))
        if bad.size:
            raise CodecError(
                f"{self.engine.name} level {self.level}: {self._unpacker.engine} unpacks another page than "
                f"was packed (page {end - count + int(bad[0])} of the sample)",
                engine=self.engine.name,
                page=end - count + int(bad[0]),
            )


def estimate_ratios(
    sizes: Sequence[NDArray[np.uint32]], covered: Sequence[int], page_size: int
) -> list[float]:
    """Tell how small each trial packs all pages, packed to plain, from the pages it had time for.

    Where a trial did not see all pages, its result is scaled by what another one, which has, got on the same
    pages and on all: pages differ far more from each other than engines do. (Of 32 MiB of a guest, zstd 19
    sees 1 MiB in 0.3 s: alone that is off by some 10 %, so by 1 %.)

    Parameters
    ----------
    sizes : sequence of (n,) uint32
        Packed bytes of each page; those behind `covered` are not used.
    covered : sequence of int
        Pages that each trial has seen, at least 1.
    page_size : int
        Bytes.

    Returns
    -------
    list of float
        One for each trial.
    """
    most = max(covered)
    # Of those that saw most, the one that packs best is the most like the slow ones.
    reference = min(
        (each for each, seen in zip(sizes, covered, strict=True) if seen == most),
        key=lambda each: int(each[:most].sum(dtype=np.uint64)),
    )
    sums = np.concatenate(([0], np.cumsum(reference[:most], dtype=np.uint64))).astype(np.float64)
    ratios = []
    for each, seen in zip(sizes, covered, strict=True):
        plain = float(each[:seen].sum(dtype=np.uint64)) / (seen * page_size)
        easier = (sums[seen] / seen) / (sums[most] / most)
        ratios.append(min(float(plain / easier), 1.0))
    return ratios
