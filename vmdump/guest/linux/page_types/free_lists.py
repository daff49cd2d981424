"""Free pages of kernels before 3.8, which only the lists of them tell."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import attrgetter

import numpy as np

from vmdump.errors import ReadError
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.linux.page_types.arrays import PageArray, Typed
from vmdump.guest.linux.page_types.layout import PageLayout
from vmdump.kernels.page_types import FREE

__all__ = ["listed_runs"]

_MOST = 1 << 16
"""Blocks: each takes a walk of page tables, 0.15 ms. What is listed behind them is kept."""
_MAX_NODES = 64
_MAX_ZONES = 8
"""Of a node; Linux has four or five. What is no zone has no list in which each entry names the one before."""
_MAX_KINDS = 16
_MAX_LISTS = 1 << 14
"""Of all nodes: 64 with four zones of 11 orders and five kinds have 14080."""


def listed_runs(
    guest: Typed, lines: Vmcoreinfo, layout: PageLayout, arrays: Sequence[PageArray]
) -> Iterator[tuple[int, int, int]]:
    """Find the runs of free pages that are in the lists of all zones.

    A list ends where it contradicts itself: what is behind is kept.

    Parameters
    ----------
    guest : Typed
        The guest.
    lines : Vmcoreinfo
        Of its kernel.
    layout : PageLayout
        Of its struct pages.
    arrays : sequence of PageArray
        Where they are.

    Yields
    ------
    (int, int, int)
        First page, pages, and FREE; none where VMCOREINFO does not tell of the lists.

    Raises
    ------
    SourceError
        The memory cannot be read.
    """
    lists = _Lists(guest, lines, layout, arrays)
    yield from islice(lists.runs(), _MOST)


class _Lists:
    def __init__(
        self, guest: Typed, lines: Vmcoreinfo, layout: PageLayout, arrays: Sequence[PageArray]
    ) -> None:
        self._guest = guest
        self._lines = lines
        self._layout = layout
        self._arrays = sorted(arrays, key=attrgetter("address"))
        self._code = f"{'<' if guest.byteorder == 'little' else '>'}u{layout.word}"

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Give the blocks of all lists."""
        lines = self._lines
        wanted = [
            lines.offset("pglist_data.node_zones"),
            lines.struct_size("zone"),
            lines.offset("zone.free_area"),
            lines.struct_size("free_area"),
            lines.offset("free_area.free_list"),
            lines.struct_size("list_head"),
            lines.offset("page.lru"),
        ]
        sizes = [value for value in wanted if value is not None and 0 <= value < 1 << 24]
        if len(sizes) < len(wanted):
            return
        zones, zone_size, areas, area_size, free_list, list_size, lru = sizes
        kinds = min(max(lines.length("free_area.free_list") or 1, 1), _MAX_KINDS)
        heads = (
            (
                node + zones + zone * zone_size + areas + order * area_size + free_list + kind * list_size,
                order,
            )
            for node in self._nodes()
            for zone in range(_MAX_ZONES)
            for order in range(self._layout.free_orders)
            for kind in range(kinds)
        )
        for (head, order), _ in zip(heads, range(_MAX_LISTS), strict=False):
            for entry in self._entries(head):
                run = self._run(entry - lru, order)
                if run is None:
                    break
                yield run

    def _nodes(self) -> list[int]:
        lines = self._lines
        one, many = lines.symbol("contig_page_data"), lines.symbol("node_data")
        if one is not None:
            return [one]
        count = min(max(lines.length("node_data") or 1, 1), _MAX_NODES)
        words = [] if many is None else self._words(many, count)
        return [word for word in words if word]

    def _entries(self, head: int) -> Iterator[int]:
        """Follow a list as long as each entry names the one before."""
        before, found = head, self._words(head, 2)
        while found and found[0] not in (head, 0):
            entry = found[0]
            found = self._words(entry, 2)
            if not found or found[1] != before:
                return
            yield entry
            before = entry

    def _run(self, struct: int, order: int) -> tuple[int, int, int] | None:
        """Give the block whose first struct page is there; None if none is."""
        index = bisect_right(self._arrays, struct, key=attrgetter("address")) - 1
        if index < 0:
            return None
        array = self._arrays[index]
        place, rest = divmod(struct - array.address, self._layout.size)
        pfn = array.first + place
        if rest or place >= array.pages or pfn % (1 << order):
            return None
        return pfn, 1 << order, FREE

    def _words(self, address: int, count: int) -> list[int]:
        """Read words; none where they cannot be read."""
        limit = 1 << 8 * self._layout.word
        size = count * self._layout.word
        if not 0 <= address <= limit - size:
            return []
        try:
            raw = self._guest.read_virtual(address, size)
        except ReadError:
            return []
        words: list[int] = np.frombuffer(raw, self._code).tolist()
        return words
