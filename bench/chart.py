"""The chart: medians as bars, spread as whiskers, peers in grey, limits as ticks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from figures import median, seconds, values
from measure import Group, Row

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

OURS, PEER, LIMIT = "#2166ac", "#b0b0b0", "#d6604d"


def draw_chart(path: Path, groups: Sequence[Group], about: str) -> None:
    """Draw one panel per group, into a file whose suffix says the format."""
    shown = [(group, [row for row in group.rows if row.kind != "limit" and row.good]) for group in groups]
    shown = [(group, rows) for group, rows in shown if rows]
    if not shown:
        return
    # An inch is room for four bars; a panel's title and axis take as much as three.
    heights = [len(rows) + 3.0 for _, rows in shown]
    figure, panels = pyplot.subplots(
        len(shown), 1, figsize=(10, sum(heights) / 4 + 0.8), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel, (group, rows) in zip(panels[:, 0], shown, strict=True):
        draw_group(panel, group, rows)
    handles: list[Artist] = [
        Patch(color=OURS, label="vmdump"),
        Patch(color=PEER, label="peer"),
        Line2D([], [], color=LIMIT, linewidth=2, label="limit: the engine in a bare loop"),
        Line2D([], [], color="black", linewidth=1, marker="|", label="fastest and slowest round"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"Seconds of the whole process: {about}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def draw_group(panel: Axes, group: Group, rows: Sequence[Row]) -> None:
    """Draw the bars of one group."""
    ends = []
    for place, row in enumerate(rows):
        wall = values(row, seconds)
        middle = median(row) or 0.0
        ends.append(max(wall))
        panel.barh(place, middle, color=OURS if row.kind == "vmdump" else PEER, height=0.7)
        panel.plot(
            [min(wall), max(wall)], [place, place], color="black", linewidth=1, marker="|", markersize=4
        )
        limit = median(group.row(row.limit))
        if limit is not None:
            panel.plot([limit, limit], [place - 0.42, place + 0.42], color=LIMIT, linewidth=2)
            ends[-1] = max(ends[-1], limit)
    room = max(ends) * 0.01
    for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
        panel.text(end + room, place, f"{median(row):.2f}", va="center", fontsize=7)
    panel.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(0, max(ends) * 1.08)
    panel.tick_params(axis="x", labelsize=8)
    panel.set_title(f"{group.name}: {group.about}", fontsize=9, loc="left")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
