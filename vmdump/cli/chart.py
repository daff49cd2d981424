"""Ratio against speed as a picture: in text for a terminal, or drawn by matplotlib."""

from __future__ import annotations

import itertools
import math
import string
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmdump.cli.pictures import STYLE, load_matplotlib, saved
from vmdump.cli.printing import harmless
from vmdump.operations.bench.bench import Benchmark
from vmdump.operations.bench.forecast import Candidate
from vmdump.units import format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

__all__ = ["FORMATS", "draw_picture", "draw_text", "letters"]

FORMATS = (".svg", ".png", ".pdf")
_WIDTH, _HEIGHT = 72, 20
_MARGIN = 7
"""Columns for the figures left of the axis."""
_COLOURS = {"zlib": "#1f5fa8", "lzo": "#2e8b57", "snappy": "#c25a00", "zstd": "#8e2fa0"}
_MARKERS = ("o", "s", "^", "D")
_TICKS = (1, 2, 5)
_RADII = (8, 13, 19, 26, 34, 43, 53)
_ANGLES = (-90, 90, -60, 60, -120, 120, 0, 180, -30, 30, -150, 150)
"""Where a name may be, in points and degrees from its point; the first that is free is taken."""


def letters(candidates: Sequence[Candidate]) -> dict[Candidate, str]:
    """Give the efficient ones letters, the fastest first: a to z, A to Z, and then no letter."""
    best = sorted((each for each in candidates if each.efficient), key=lambda each: -each.speed)
    return dict(zip(best, string.ascii_letters, strict=False))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low * 0.99, high * 1.01)


def draw_text(candidates: Sequence[Candidate]) -> str:
    """Draw ratio against speed in 20 lines of 72 columns, faster to the right and smaller to the bottom.

    Letters are the efficient ones and dots the others; a legend follows.
    """
    packing = [each for each in candidates if each.speed]
    named = letters(packing)
    left, right = _range([math.log10(each.speed) for each in packing])
    best, worst = _range([each.ratio for each in packing])
    columns = _WIDTH - _MARGIN
    grid = [[" "] * columns for _ in range(_HEIGHT - 2)]

    def place(each: Candidate) -> tuple[int, int]:
        x = round((math.log10(each.speed) - left) / (right - left) * (columns - 1))
        return round((worst - each.ratio) / (worst - best) * (len(grid) - 1)), x

    for each in packing:
        if each not in named:
            row, column = place(each)
            grid[row][column] = "."
    for each, letter in named.items():
        row, column = place(each)
        # Letters do not hide each other: one moves to the next column that has none.
        free = (at for at in sorted(range(columns), key=lambda at: abs(at - column)) if grid[row][at] in " .")
        grid[row][next(free, column)] = letter
    lines = []
    for number, cells in enumerate(grid):
        ratio = worst - (worst - best) * number / (len(grid) - 1)
        mark = f"{ratio:.3f}" if number % 4 == 0 or number == len(grid) - 1 else ""
        lines.append(f"{mark:>{_MARGIN - 2}} |{''.join(cells)}".rstrip())
    axis, figures = ["-"] * columns, [" "] * (columns + _MARGIN)
    for speed in _round_speeds(left, right):
        column = round((math.log10(speed) - left) / (right - left) * (columns - 1))
        text = f"{speed / 1e6:g}"
        begin = max(min(_MARGIN + column - len(text) // 2, len(figures) - len(text)), 0)
        if all(cell == " " for cell in figures[max(begin - 1, 0) : begin + len(text)]):
            axis[column] = "+"
            figures[begin : begin + len(text)] = text
    lines.append(f"{'ratio':>{_MARGIN - 2}} +{''.join(axis)}")
    title = "MB/s"
    lines.append("".join([title, *figures[len(title) :]]).rstrip())
    legend = "  ".join(f"{letter} {each.name}".replace(" ", "\0") for each, letter in named.items())
    # A name and its letter stay together.
    lines += [line.replace("\0", " ") for line in textwrap.wrap(legend, _WIDTH)]
    return "\n".join(lines)


def _round_speeds(left: float, right: float) -> list[float]:
    powers = range(math.floor(left), math.ceil(right) + 1)
    speeds = (float(step * 10**power) for power in powers for step in _TICKS)
    return [speed for speed in speeds if left <= math.log10(speed) <= right]


def draw_picture(found: Benchmark, kind: str) -> bytes:
    """Draw ratio against speed.

    Parameters
    ----------
    found : Benchmark
        What is drawn.
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
    with matplotlib.rc_context(STYLE):
        # Without pyplot there is no display, no window and nothing global.
        figure: Figure = matplotlib.figure.Figure(figsize=(9, 6), dpi=144, layout="constrained")
        axes = figure.add_subplot()
        _draw_points(axes, found)
        _draw_frontier(axes, found)
        figure.suptitle("Which compression for this guest?", fontsize=13, fontweight="bold")
        axes.set_title(
            harmless(
                f"{found.source}: {format_size(found.data_bytes)} of data, "
                f"sample of {format_size(found.sample_bytes)}; {found.machine}{_levels(found)}"
            ),
            fontsize=8,
            color="0.3",
            parse_math=False,  # a path may have dollars
        )
        axes.set_xscale("log")
        axes.set_xlabel("speed of one processor, MB/s of pages that are not zero")
        axes.set_ylabel("size, packed to plain (lower is better)")
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=_TICKS))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.grid(alpha=0.25, which="both", linewidth=0.5)
        axes.margins(0.06, 0.16)
        axes.legend(
            title="engine (bold: the default of its format)", loc="upper left", frameon=True, fontsize=8
        )
        _draw_labels(figure, axes, found)
        return saved(figure, kind)


def _levels(found: Benchmark) -> str:
    """Say in a line what the fastest dump would be at other levels of filtering."""
    told = [
        f"level {each.dump_level}: {format_size(dump.output_bytes)} in {dump.seconds:.2f} s"
        if (dump := each.candidate) is not None
        else f"level {each.dump_level}: no page types"
        for each in found.levels
    ]
    return f"\nfastest at {', '.join(told)}" if told else ""


def _draw_points(axes: Axes, found: Benchmark) -> None:
    """Draw a line for each engine through its levels; its codec gives the colour, the engine the marker."""
    engines: dict[tuple[str, str], list[Candidate]] = {}
    for each in sorted(found.candidates, key=lambda each: (each.codec, each.level or 0)):
        if each.speed:
            engines.setdefault((each.codec, each.engine), []).append(each)
    seen: dict[str, int] = {}
    for (codec, engine), levels in engines.items():
        marker = _MARKERS[seen.setdefault(codec, 0) % len(_MARKERS)]
        seen[codec] += 1
        colour = _COLOURS.get(codec, "0.3")
        label = engine if engine == codec else f"{engine} ({codec})"
        x, y = [each.speed / 1e6 for each in levels], [each.ratio for each in levels]
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        axes.plot(
            x, y, marker, color=colour, markersize=4, fillstyle="none", alpha=0.7, zorder=3, label=label
        )
        best = [each for each in levels if each.efficient]
        axes.plot(
            [each.speed / 1e6 for each in best],
            [each.ratio for each in best],
            marker,
            color=colour,
            markersize=7,
            zorder=4,
        )


def _frontier(found: Benchmark) -> list[tuple[float, float]]:
    """Give MB/s and ratio of the efficient ones, the slowest first."""
    return sorted((each.speed / 1e6, each.ratio) for each in found.candidates if each.efficient)


def _draw_frontier(axes: Axes, found: Benchmark) -> None:
    """Draw the frontier: at a speed, the smallest ratio of all that are at least as fast."""
    best = _frontier(found)
    axes.step(
        [speed for speed, _ in best],
        [ratio for _, ratio in best],
        where="pre",
        label="no other is both faster and smaller",
        color="0.25",
        linewidth=1.2,
        linestyle="--",
        zorder=1,
    )


def _draw_labels(figure: Figure, axes: Axes, found: Benchmark) -> None:
    """Name the efficient points and the defaults, where a name hides neither a point nor another name."""
    figure.draw_without_rendering()
    # Places are final now; a new draw must not move the axes.
    figure.set_layout_engine("none")
    matplotlib = load_matplotlib()
    places = [(each.speed / 1e6, each.ratio) for each in found.candidates if each.speed]
    # The upright parts of the frontier are in the way too; along the others, names lie above or below.
    for (speed, low), (_, high) in itertools.pairwise(_frontier(found)):
        places += [(speed, low + (high - low) * part / 20) for part in range(21)]
    taken = []
    for x, y in axes.transData.transform(places):
        taken.append(matplotlib.transforms.Bbox.from_bounds(x - 7, y - 7, 14, 14))
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    named = [each for each in found.candidates if each.speed and (each.efficient or each.default)]
    for each in sorted(named, key=lambda each: -each.speed):
        label = axes.annotate(
            each.name,
            (each.speed / 1e6, each.ratio),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            fontweight="bold" if each.default else "normal",
            color=_COLOURS.get(each.codec, "0.3"),
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )
        for radius, angle in itertools.product(_RADII, _ANGLES):
            turned = math.radians(angle)
            label.set_position((radius * math.cos(turned), radius * math.sin(turned)))
            sideways = abs(angle) in (0, 30, 150, 180)
            label.set_horizontalalignment(
                "center" if not sideways else "left" if abs(angle) < 90 else "right"
            )
            label.set_verticalalignment("center" if angle in (0, 180) else "top" if angle < 0 else "bottom")
            box = label.get_window_extent()
            if _inside(box, axes.bbox) and not any(box.overlaps(other) for other in taken):
                taken.append(box.padded(4))
                if radius > _RADII[1]:
                    _draw_leader(axes, each, label.get_position())
                break
        else:
            label.remove()


def _draw_leader(axes: Axes, each: Candidate, end: tuple[float, float]) -> None:
    """Connect a point with its name, which is not beside it."""
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
    place = each.speed / 1e6, each.ratio
    axes.annotate("", place, xytext=end, textcoords="offset points", arrowprops=line)


def _inside(box: Bbox, outer: Bbox) -> bool:
    return bool(outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1)
