"""The pictures of ``vmdump report``, as SVG inside the page."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from vmdump.cli.memory_map import COLOURS, MemoryMap, map_of
from vmdump.cli.printing import share
from vmdump.guest.linux.page_types.usage import PageType, PageUsage
from vmdump.markup import Html, tag
from vmdump.operations.density import Cell, Density
from vmdump.readers.kinds import PageKind
from vmdump.units import format_size

__all__ = ["bytes_chart", "kinds_chart", "types_map"]

_WIDTH = 1024
_HEIGHT = 110
_BITS = 8

_KINDS = {
    "packed": "compressed",
    "plain": "as it is",
    "zero": "zero",
    "excluded": "excluded",
    "damaged": "damaged",
}
"""From the ground up."""


def _class_of(kind: PageKind) -> str:
    return {PageKind.EXCLUDED: "excluded", PageKind.ZERO: "zero", PageKind.PLAIN: "plain"}.get(kind, "packed")


def _by_class(cell: Cell) -> dict[str, int]:
    counts = dict.fromkeys(_KINDS, 0)
    for kind, pages in cell.kinds.items():
        if kind != PageKind.MISSING:
            counts[_class_of(kind)] += pages
    counts["damaged"] += cell.damaged
    return counts


def _frame(density: Density, label: str, *parts: Html) -> Html:
    """Put a chart over the addresses of memory, which are written below it."""
    cells = density.cells
    step = _WIDTH / len(cells)
    ticks = []
    for index in sorted({0, len(cells) // 4, len(cells) // 2, 3 * len(cells) // 4}):
        ticks.append(tag("text", f"{cells[index].begin:#x}", x=f"{index * step:.1f}", y=_HEIGHT + 14))
    ticks.append(tag("text", f"{cells[-1].end:#x}", x=_WIDTH, y=_HEIGHT + 14, text_anchor="end"))
    ground = tag("line", x1=0, x2=_WIDTH, y1=_HEIGHT, y2=_HEIGHT, class_="grid")
    view = f"0 0 {_WIDTH} {_HEIGHT + 18}"
    picture = tag("svg", *parts, ground, *ticks, viewBox=view, role="img", aria_label=label)
    return tag("div", picture, class_="wide")


def kinds_chart(density: Density) -> Html:
    """Draw how the dump holds pages, by address: shares of each part of the memory."""
    step = _WIDTH / len(density.cells)
    paths = dict.fromkeys(_KINDS, "")
    total = dict.fromkeys(_KINDS, 0)
    for index, cell in enumerate(density.cells):
        at = float(_HEIGHT)
        for name, pages in _by_class(cell).items():
            total[name] += pages
            height = pages / cell.pages * (_HEIGHT - 6)
            if pages:
                paths[name] += f"M{index * step:.1f} {at:.1f}h{step:.1f}v{-height:.1f}h{-step:.1f}z"
            at -= height
    drawn = [tag("path", d=Html(path), class_=name) for name, path in paths.items() if path]
    return Html(_frame(density, "How the dump holds pages", *drawn) + _kinds_key(total))


def _kinds_key(total: dict[str, int]) -> Html:
    pages = sum(total.values())
    items = [
        tag("li", _swatch(class_=name), f"{_KINDS[name]}: {count} ({share(count, pages)})")
        for name, count in total.items()
        if count
    ]
    return tag("ul", *items, class_="key")


def _swatch(**looks: str) -> Html:
    square = tag("rect", x="0.5", y="0.5", width=9, height=9, **looks)
    return tag("svg", square, viewBox="0 0 10 10", aria_hidden="true")


def bytes_chart(density: Density) -> Html:
    """Draw what each part of the memory takes in the dump, and the entropy of its bytes."""
    step = _WIDTH / len(density.cells)
    lines: list[str] = []
    bars = run = ""
    for index, cell in enumerate(density.cells):
        height = min(cell.stored_bytes / (cell.pages * density.page_size), 1) * (_HEIGHT - 6)
        if height:
            bars += f"M{index * step:.1f} {_HEIGHT}h{step:.1f}v{-height:.1f}h{-step:.1f}z"
        if cell.entropy is None:
            lines, run = [*lines, run], ""
            continue
        y = _HEIGHT - cell.entropy / _BITS * (_HEIGHT - 6)
        run += f"{'L' if run else 'M'}{index * step:.1f} {y:.1f}h{step:.1f}"
    curve = "".join([*lines, run])
    drawn = [tag("path", d=Html(bars), class_="packed"), tag("path", d=Html(curve), class_="entropy")]
    stored = sum(cell.stored_bytes for cell in density.cells)
    whole = sum(cell.pages for cell in density.cells) * density.page_size
    how = "as stored in the dump" if density.packed else "as zlib would compress them"
    key = tag(
        "ul",
        tag("li", _swatch(class_="packed"), f"bytes {how}: {format_size(stored)} ({share(stored, whole)})"),
        tag("li", "line: entropy of the bytes, at the top 8 bits of 8, as random or encrypted ones have"),
        class_="key",
    )
    return Html(_frame(density, "Stored bytes and entropy", *drawn) + key)


def types_map(usage: PageUsage) -> Html:
    """Draw what memory is used for: the map of ``vmdump info --usage --picture``."""
    found = map_of(usage)
    columns, height, left = found.stripes.shape[1], 12, 110
    scale = (_WIDTH - left) / columns
    paths: dict[int, list[str]] = {}
    for row, begin, end, kind in _runs(found):
        path = f"M{left + begin * scale:.1f} {row * height + 1}h{(end - begin) * scale:.1f}v{height - 2}"
        paths.setdefault(kind, []).append(f"{path}H{left + begin * scale:.1f}z")
    drawn = [
        tag("path", d=Html("".join(parts)), fill=COLOURS[PageType(kind)])
        for kind, parts in paths.items()
        if kind != PageType.MISSING
    ]
    labels = [
        tag(
            "text",
            f"{page * usage.page_size:#x}" if page >= 0 else "no memory",
            x=left - 8,
            y=row * height + 10,
            text_anchor="end",
        )
        for row, page in enumerate(found.rows)
        if page < 0 or row % 4 == 0 or found.rows[row - 1] < 0
    ]
    cell = format_size(found.cell_pages * usage.page_size)
    view = f"0 0 {_WIDTH} {len(found.rows) * height}"
    picture = tag("svg", *drawn, *labels, viewBox=view, role="img", aria_label="What memory is used for")
    picture = tag("div", picture, class_="wide")
    total = sum(each.pages for each in usage.counts.values())
    here = sorted((pair for pair in usage.counts.items() if pair[1].pages), key=lambda pair: -pair[1].pages)
    items = [
        tag(
            "li",
            _swatch(fill=COLOURS[kind], class_="swatch"),
            f"{kind.label}: {format_size(each.bytes)} ({share(each.pages, total)})",
        )
        for kind, each in here
    ]
    note = f"A 64th of a row is {cell}; its colours are those of its pages, in order of the types."
    return Html(picture + tag("ul", *items, class_="key") + tag("p", note, class_="soft"))


def _runs(found: MemoryMap) -> Iterator[tuple[int, int, int, int]]:
    """Give runs of one colour: the row, the first and last stripe, the type."""
    for row, stripes in enumerate(found.stripes):
        if found.rows[row] < 0:
            continue
        edges = [0, *(np.flatnonzero(np.diff(stripes)) + 1).tolist(), len(stripes)]
        for begin, end in pairwise(edges):
            yield row, begin, end, int(stripes[begin])
