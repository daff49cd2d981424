"""Where the bytes of a dump are: how it holds pages, and how small and random they are, by address."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import CapabilityError, CodecError, FormatError, ReadError, SourceError
from vmdump.guest.blocks import Pages
from vmdump.guest.whole import page_runs
from vmdump.opening import opened_in_part
from vmdump.readers.dump import Dump
from vmdump.readers.kinds import PageKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdump.opening import AnySource

__all__ = ["Cell", "Density", "density"]

_CELLS = 256
_SAMPLE = 16
"""Pages of a cell that are read; 4096 of the largest guest."""
_WINDOW = 1 << 20
"""Pages whose kinds are asked for together."""


@dataclass(frozen=True)
class Cell:
    """A part of the guest's memory.

    Attributes
    ----------
    begin, end : int
        Guest-physical addresses; between them the guest may have less.
    pages : int
        Of the guest.
    kinds : dict of PageKind to int
        How the dump holds them; those that are damaged have no kind.
    damaged : int
        Pages whose descriptors are invalid.
    stored_bytes : int
        That pages which are not zero take in the dump; of a dump that does not store them one by one, what
        zlib makes of them. An estimate from `sampled` of them.
    entropy : float or None
        Of the bytes of these, from 0 to 8 bits each; None where nothing was sampled.
    sampled : int
        Pages that were read.
    """

    begin: int
    end: int
    pages: int
    kinds: dict[PageKind, int]
    damaged: int
    stored_bytes: int
    entropy: float | None
    sampled: int


@dataclass(frozen=True)
class Density:
    """What :func:`density` found.

    Attributes
    ----------
    page_size : int
        Bytes.
    cells : tuple of Cell
        256 at most, of as many pages each but for the last, ascending.
    packed : bool
        The dump stores pages one by one, and their sizes are its own.
    """

    page_size: int
    cells: tuple[Cell, ...]
    packed: bool


class _Sums:
    """What is known of one cell so far."""

    def __init__(self) -> None:
        self.begin = -1
        self.end = 0
        self.pages = 0
        self.kinds = np.zeros(len(PageKind), np.int64)
        self.damaged = 0
        self.bytes = np.zeros(256, np.int64)
        self.stored = 0
        self.sampled = 0


def density(source: AnySource) -> Density:
    """Tell where the bytes of a dump are. Page descriptors are read, and 4096 pages.

    Parameters
    ----------
    source : str, path, sequence of paths, Source, buffer, or list of blocks
        A dump; of one that is damaged, what is left of it.

    Raises
    ------
    CapabilityError
        It is not a dump.
    VmdumpError
        It cannot be opened, not even in part.
    """
    with opened_in_part(source, search=False) as (dump, _):
        if not isinstance(dump, Dump):
            raise CapabilityError(f"{dump.format}: only a dump tells how it holds pages")
        size = dump.page_size
        runs = page_runs(dump.blocks, size)
        each = -(-sum(end - begin for begin, end in runs) // _CELLS)
        sums = [_Sums() for _ in range(_CELLS)]
        packed = False
        for number, pfn, count in _pieces(runs, each):
            packed |= _add(sums[number], dump, pfn, count, each)
        return Density(size, tuple(_cell(cell, size) for cell in sums if cell.pages), packed)


def _pieces(runs: list[tuple[int, int]], each: int) -> Iterator[tuple[int, int, int]]:
    """Cut runs of pages at the edges of cells: the cell, the first page, how many."""
    seen = 0
    for begin, end in runs:
        while begin < end:
            count = min(end - begin, each - seen % each, _WINDOW)
            yield seen // each, begin, count
            seen += count
            begin += count


def _add(sums: _Sums, dump: Dump, pfn: int, count: int, each: int) -> bool:
    """Count pages of a cell, and sample some; tell whether their sizes are the dump's."""
    size = dump.page_size
    if sums.begin < 0:
        sums.begin = pfn * size
    sums.end = (pfn + count) * size
    sums.pages += count
    kinds, bad = dump.kinds_and_damage(pfn, count)
    sums.damaged += int(np.count_nonzero(bad))
    sums.kinds += np.bincount(kinds[~bad], minlength=len(PageKind))
    wanted = min(-(-_SAMPLE * count // each), _SAMPLE - sums.sampled)
    candidates = np.flatnonzero((kinds >= PageKind.PLAIN) & ~bad)
    packed = False
    for index in candidates[:: max(len(candidates) // max(wanted, 1), 1)][: max(wanted, 0)].tolist():
        try:
            page = dump.pages(pfn + index, 1)
            stored = dump.stored_pages(pfn + index, 1)
        except (SourceError, FormatError, CodecError, ReadError):
            continue  # `vmdump verify` names those that are damaged
        packed |= stored is not None
        sums.bytes += np.bincount(page.reshape(-1), minlength=256)
        sums.stored += _packed_size(page) if stored is None else int(stored.sizes[0])
        sums.sampled += 1
    return packed


def _packed_size(page: Pages) -> int:
    return min(len(zlib.compress(page.tobytes(), 1)), page.size)


def _cell(sums: _Sums, size: int) -> Cell:
    held = int(sums.kinds[PageKind.PLAIN :].sum())
    return Cell(
        begin=sums.begin,
        end=sums.end,
        pages=sums.pages,
        kinds={kind: int(sums.kinds[kind]) for kind in PageKind if sums.kinds[kind]},
        damaged=sums.damaged,
        stored_bytes=held * sums.stored // sums.sampled if sums.sampled else 0,
        entropy=_entropy(sums.bytes) if sums.sampled else None,
        sampled=sums.sampled,
    )


def _entropy(counts: NDArray[np.int64]) -> float:
    """Give Shannon's entropy of bytes, in bits per byte."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0
