"""``synthetic:SIZE?seed=&fill=``: a deterministic x86_64 Linux guest that needs no file.

It is laid out as QEMU's q35 machine lays a guest out, its pages look like a real guest's, and readers find
in it what they look for: registers, VMCOREINFO, utsname, page tables. The same size, seed and fill give the
same guest everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import x86_64
from vmdump.errors import RequestError
from vmdump.guest.blocks import Block, Pages
from vmdump.sources.base import StillSource
from vmdump.sources.spec import check_options
from vmdump.sources.synthetic.kernel import IMAGE_SIZE, TEXT_SIZE, build_kernel
from vmdump.sources.synthetic.pages import (
    CODE_TEMPLATES,
    EXTRA_TEMPLATES,
    MAP_PAGES,
    PAGE_SIZE,
    REGION_PAGES,
    Palette,
    RawWords,
    build_map,
)
from vmdump.units import parse_size

__all__ = ["SyntheticMemory", "SyntheticSource", "open_synthetic"]

_SMALLEST = 2 << 20
_LARGEST = 16 << 40
_BASE_MEMORY = 0xA0000
_LOW_START = 1 << 20
_LOW_LIMIT = 2 << 30
_FIRMWARE_START = 0xFFFC0000
_HIGH_START = 4 << 30
_REGION = REGION_PAGES * PAGE_SIZE


class _Guest:
    """What decides the content of every page, shared by the blocks and never changed."""

    def __init__(self, low_end: int, memory_end: int, seed: int, fill: float) -> None:
        raw = RawWords(seed)
        self.kernel = build_kernel(low_end, memory_end, int(raw.words(1)[0]))
        data = self.kernel.data
        used = data.any(axis=1)
        self._palette = Palette(raw, data[used])
        self._map, self._touched = build_map(raw, fill)

        # The kernel overrides the map: its text, its data, and the zeros of its memory map.
        text, image = TEXT_SIZE // PAGE_SIZE, IMAGE_SIZE // PAGE_SIZE
        self._image_pfn = self.kernel.load // PAGE_SIZE
        self._image = self._map[(self._image_pfn + np.arange(2 * image)) % MAP_PAGES]
        self._image[:text] = np.resize(CODE_TEMPLATES, text)
        self._image[text : text + len(data)] = np.where(used, EXTRA_TEMPLATES + np.cumsum(used) - 1, 0)
        self._image[image:] = 0

    def generate(self, pfn: int, out: Pages) -> None:
        """Make the pages from `pfn` on; `out` is (n, 4096) uint8."""
        pfns = np.arange(pfn, pfn + len(out), dtype=np.uint64)
        templates = self._map[pfns % np.uint64(MAP_PAGES)]
        begin = max(self._image_pfn, pfn)
        end = min(self._image_pfn + len(self._image), pfn + len(out))
        if begin < end:
            templates[begin - pfn : end - pfn] = self._image[begin - self._image_pfn : end - self._image_pfn]
        self._palette.generate(pfns, templates, out)

    def touched(self, regions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which 2 MiB regions, counted from address 0, may hold data."""
        touched: NDArray[np.bool_] = self._touched[regions % len(self._touched)]
        touched |= regions == self.kernel.load // _REGION
        return touched


class SyntheticMemory:
    """A run of the synthetic guest's memory, made when it is looked at.

    Parameters
    ----------
    guest : _Guest
        Shared by all blocks.
    start : int
        Guest-physical address, a multiple of 4096.
    size : int
        Bytes, a multiple of 4096.
    """

    copies = True

    def __init__(self, guest: _Guest, start: int, size: int) -> None:
        self.size = size
        self._guest = guest
        self._start = start

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the runs ``[begin, end)`` of 2 MiB regions that the guest touched."""
        first = self._start // _REGION
        regions = np.arange(first, -(-(self._start + self.size) // _REGION))
        edges = np.flatnonzero(np.diff(self._guest.touched(regions), prepend=False, append=False))
        offsets = np.clip((first + edges) * _REGION - self._start, 0, self.size)
        yield from zip(offsets[::2].tolist(), offsets[1::2].tolist(), strict=True)

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Make `length` bytes from `offset` in `scratch`; whole pages are made in place."""
        out = scratch[:length]
        skipped = offset % PAGE_SIZE
        pfn = (self._start + offset) // PAGE_SIZE
        if skipped == 0 and length % PAGE_SIZE == 0:
            self._guest.generate(pfn, out.reshape(-1, PAGE_SIZE))
        else:
            pages = np.empty((-(-(skipped + length) // PAGE_SIZE), PAGE_SIZE), np.uint8)
            self._guest.generate(pfn, pages)
            out[:] = pages.ravel()[skipped : skipped + length]
        return out


class SyntheticSource(StillSource):
    """The synthetic guest.

    Blocks are those of a q35 guest: base memory, memory from 1 MiB to at most 2 GiB, the rest from 4 GiB,
    and 256 KiB of firmware below 4 GiB. There are two vCPUs.

    Parameters
    ----------
    size : int
        Bytes of memory without the firmware: a multiple of 4096 from 2 MiB to 16 TiB.
    seed : int
        Another seed is another guest; below 2**64.
    fill : float
        Share of the pages that hold data, 0 to 1; 4 MiB with the kernel follow rules of their own. Half of
        the other pages lie in 2 MiB regions that are holes, half are zero pages between data pages.

    Raises
    ------
    RequestError
        A parameter is out of range.
    """

    format = "synthetic"

    def __init__(self, size: int, *, seed: int = 1, fill: float = 0.3) -> None:
        if size % PAGE_SIZE or not _SMALLEST <= size <= _LARGEST:
            raise RequestError(
                f"size: {size:#x} bytes; a synthetic guest has a multiple of 4096 from 2M to 16T",
                parameter="size",
            )
        if not 0 <= seed < 1 << 64:
            raise RequestError(f"seed: {seed} is not in 0 to 2**64 - 1", parameter="seed")
        if not 0 <= fill <= 1:
            raise RequestError(f"fill: {fill} is not a share from 0 to 1", parameter="fill")
        low_end = min(size, _LOW_LIMIT)
        memory_end = _HIGH_START + size - low_end
        ranges = (
            (0, _BASE_MEMORY),
            (_LOW_START, low_end),
            (_FIRMWARE_START, _HIGH_START),
            (_HIGH_START, memory_end),
        )
        guest = _Guest(low_end, memory_end, seed, fill)
        blocks = [
            Block(begin, SyntheticMemory(guest, begin, end - begin)) for begin, end in ranges if begin < end
        ]
        super().__init__(blocks, x86_64.ARCH, notes=guest.kernel.notes)


def open_synthetic(size: str, options: dict[str, str]) -> SyntheticSource:
    """Open ``synthetic:SIZE?seed=&fill=``.

    Parameters
    ----------
    size : str
        What stands behind the colon: ``64M``, ``4G``.
    options : dict of str to str
        ``seed`` and ``fill``.

    Raises
    ------
    RequestError
        An option is not known, or a value is not a number or out of range.
    """
    check_options(options, ("seed", "fill"), "synthetic")
    try:
        seed = int(options.get("seed", "1"), 0)
    except ValueError:
        raise RequestError(f"seed: {options['seed']!r} is not an integer", parameter="seed") from None
    try:
        fill = float(options.get("fill", "0.3"))
    except ValueError:
        raise RequestError(f"fill: {options['fill']!r} is not a number", parameter="fill") from None
    return SyntheticSource(parse_size(size), seed=seed, fill=fill)
