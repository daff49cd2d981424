"""Physical memory as a map: cells coloured by what their pages are used for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmdump.cli.pictures import STYLE, load_matplotlib, saved
from vmdump.cli.printing import harmless, share
from vmdump.guest.linux.page_types.usage import PageType, PageUsage
from vmdump.units import counted, format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "FORMATS", "MemoryMap", "draw_map", "map_of"]

FORMATS = (".svg", ".png")
_COLUMNS = 64
_ROWS = 64
"""At most; with 64 columns a cell of 1 GiB is 256 KiB, and one of 1 TiB 256 MiB."""
_STRIPES = 8
"""Of a cell, each of the colour of an eighth of its pages: what is mixed is seen to be."""
COLOURS = {
    PageType.KERNEL: "#c0392b",
    PageType.SLAB: "#f39c12",
    PageType.PAGE_TABLE: "#e8743b",
    PageType.UNDESCRIBED: "#6d4c41",
    PageType.DOUBTFUL: "#ff00ff",
    PageType.POISONED: "#000000",
    PageType.OFFLINE: "#7f8c8d",
    PageType.HUGE: "#1b3f8b",
    PageType.USER: "#4a90d9",
    PageType.CACHE_PRIVATE: "#1e8449",
    PageType.CACHE: "#7dcea0",
    PageType.FREE: "#d9dde0",
    PageType.ZERO: "#f7e9a0",
    PageType.MISSING: "#ffffff",
}
"""By hue: the kernel's are warm, user memory blue, cache green. The order is that inside a cell."""
_ORDER = list(COLOURS)
_GAP = -1
_FEWEST = 8
"""Rows of the picture's height, where a guest has less."""


@dataclass(frozen=True)
class MemoryMap:
    """What is drawn.

    Attributes
    ----------
    cell_pages : int
        Pages of a cell, a power of two.
    rows : list of int
        The first page of each row; -1 for a gap, which is as high as a row whatever its size.
    counts : (rows, columns, types) int64
        Pages of each cell by `PageType`; the rest of a cell is no memory.
    """

    cell_pages: int
    rows: list[int]
    counts: NDArray[np.int64]

    @property
    def stripes(self) -> NDArray[np.uint8]:
        """A `PageType` for each stripe: (rows, columns * stripes) uint8, of each cell in the same order."""
        counts = self.counts.copy()
        counts[:, :, PageType.MISSING] = self.cell_pages - counts.sum(axis=2)
        reached = np.cumsum(counts[:, :, _ORDER], axis=2)
        wanted = (2 * np.arange(_STRIPES) + 1) * self.cell_pages
        index = (2 * _STRIPES * reached[:, :, None, :] <= wanted[None, None, :, None]).sum(axis=3)
        types: NDArray[np.uint8] = np.array(_ORDER, np.uint8)[index]
        return types.reshape(len(self.rows), -1)


def map_of(usage: PageUsage) -> MemoryMap:
    """Lay out memory in at most 64 rows of 64 cells, without the rows in which there is none.

    Parameters
    ----------
    usage : PageUsage
        Of which guest.
    """
    bounds = np.array(usage.runs, np.int64).reshape(-1, 2)
    row_pages = _COLUMNS
    while (rows := _rows(bounds[:, 0] // row_pages, (bounds[:, 1] - 1) // row_pages)) is None:
        row_pages *= 2
    rows = [row * row_pages if row >= 0 else _GAP for row in rows]
    cell = row_pages // _COLUMNS
    counts = np.zeros((len(rows) * _COLUMNS, len(PageType)), np.int64)
    starts = np.array([row for row in rows if row >= 0], np.int64)
    places = np.array([index for index, row in enumerate(rows) if row >= 0], np.int64)
    for pfn, types in usage.windows():
        pfns = np.arange(pfn, pfn + types.size)
        at = places[np.searchsorted(starts, pfns, side="right") - 1] * _COLUMNS + pfns % row_pages // cell
        first, last = int(at[0]), int(at[-1]) + 1
        keys = (at - first) * len(PageType) + types
        counted_here = np.bincount(keys, minlength=(last - first) * len(PageType))
        counts[first:last] += counted_here.reshape(last - first, -1)
    return MemoryMap(cell, rows, counts.reshape(len(rows), _COLUMNS, -1))


def _rows(firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> list[int] | None:
    """Give the numbers of the rows that have memory, and a gap between those; None if they are too many.

    Parameters
    ----------
    firsts, lasts : (n,) int64
        Of the rows that each piece of memory touches, ascending.
    """
    steps = firsts[1:] - lasts[:-1]
    count = int((lasts - firsts + 1).sum() - (steps == 0).sum() + (steps > 1).sum())
    if count > _ROWS:
        return None
    apart = np.flatnonzero(steps > 1)
    rows: list[int] = []
    for first, last in zip(firsts[np.append(0, apart + 1)], lasts[np.append(apart, -1)], strict=True):
        rows += [*([_GAP] if rows else []), *range(int(first), int(last) + 1)]
    return rows


def draw_map(usage: PageUsage, name: str, kind: str) -> bytes:
    """Draw what memory is used for.

    Parameters
    ----------
    usage : PageUsage
        What is drawn.
    name : str
        Of the guest.
    kind : str
        One of `FORMATS`.

    Returns
    -------
    bytes
        The file; the same figures give the same bytes.

    Raises
    ------
    CapabilityError
        matplotlib is not installed.
    """
    matplotlib = load_matplotlib()
    found = map_of(usage)
    size = usage.page_size
    stripes = found.stripes
    colours = np.array([_rgb(COLOURS[kind]) for kind in PageType], np.uint8)
    height = max(len(found.rows), _FEWEST) * 0.125
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(11, height + 1.6), dpi=144, layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(
            colours[stripes],
            aspect="auto",
            interpolation="nearest",
            extent=(0, _COLUMNS, len(found.rows), 0),
        )
        _label(axes, found, size)
        pages = sum(each.pages for each in usage.counts.values())
        figure.suptitle("What is this memory used for?", fontsize=13, fontweight="bold")
        axes.set_title(
            harmless(
                f"{name}: {format_size(pages * size)}; "
                f"a row is {format_size(_COLUMNS * found.cell_pages * size)}, "
                f"a cell {format_size(found.cell_pages * size)} "
                f"({counted(found.cell_pages, 'page')})"
                f"{'; the guest ran on' if usage.running else ''}"
            ),
            fontsize=8,
            color="0.3",
            parse_math=False,  # a path may have dollars
        )
        _legend(axes, usage)
        return saved(figure, kind)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _label(axes: Axes, found: MemoryMap, size: int) -> None:
    """Write addresses at the rows: of the first one behind each gap, and of each fourth after it."""
    ticks, labels = [], []
    since = 0
    for index, row in enumerate(found.rows):
        if row < 0:
            since = 0
            continue
        if since % 4 == 0:
            ticks.append(index + 0.5)
            labels.append(f"{row * size:#x}")
        since += 1
    axes.set_yticks(ticks, labels, family="monospace", fontsize=8)
    axes.set_xticks(range(0, _COLUMNS + 1, 8))
    axes.set_xticklabels(
        [f"+{format_size(at * found.cell_pages * size)}" if at else "0" for at in range(0, _COLUMNS + 1, 8)],
        fontsize=8,
    )
    axes.vlines(range(0, _COLUMNS + 1), 0, len(found.rows), color="white", linewidth=0.4)
    axes.hlines(range(0, len(found.rows) + 1), 0, _COLUMNS, color="white", linewidth=0.8)
    reach = size * _COLUMNS * found.cell_pages
    for index, row in enumerate(found.rows):
        if row < 0:
            hole = found.rows[index + 1] * size - (found.rows[index - 1] * size + reach)
            axes.text(
                _COLUMNS / 2,
                index + 0.5,
                f"no memory: {format_size(hole)}",
                ha="center",
                va="center",
                fontsize=7,
                color="0.45",
            )
    axes.tick_params(length=2)
    axes.set_xlim(0, _COLUMNS)
    axes.set_ylim(len(found.rows), 0)
    for side in axes.spines.values():
        side.set_visible(False)


def _legend(axes: Axes, usage: PageUsage) -> None:
    """Name the types that there are, the most frequent first, with their shares."""
    matplotlib = load_matplotlib()
    total = sum(each.pages for each in usage.counts.values())
    here = sorted(
        ((kind, each) for kind, each in usage.counts.items() if each.pages),
        key=lambda pair: -pair[1].pages,
    )
    handles = [
        matplotlib.patches.Patch(
            facecolor=COLOURS[kind],
            edgecolor="0.6",
            linewidth=0.5,
            label=f"{kind.label}: {share(each.pages, total)}, {format_size(each.bytes)}",
        )
        for kind, each in here
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        fontsize=9,
        borderaxespad=0,
    )
