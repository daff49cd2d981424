"""What bench found as a picture: in text for a terminal, or drawn by matplotlib."""

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
from vmdump.units import counted, format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox

__all__ = ["FORMATS", "draw_picture", "draw_text", "letters"]

FORMATS = (".svg", ".png", ".pdf")
_WIDTH, _HEIGHT = 72, 20
_MARGIN = 7
"""Columns for the figures left of the axis."""
_COLOURS = {"zlib": "#1f5fa8", "lzo": "#2e8b57", "snappy": "#c25a00", "zstd": "#8e2fa0"}
_MARKERS = ("o", "s", "^", "D")
_RINGS = ("#d62728", "#ff9900", "#17a2b8", "#7f3fbf")
_MIB = 1 << 20
_TITLE_WIDTH = 100
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
    """Draw the seconds that a dump takes against its size, the disk's limit, and what is recommended.

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
        figure: Figure = matplotlib.figure.Figure(figsize=(10, 7), dpi=144, layout="constrained")
        axes = figure.add_subplot()
        _draw_points(axes, found)
        _draw_recommended(figure, axes, found)
        figure.suptitle("Which compression for this guest?", fontsize=13, fontweight="bold")
        axes.set_title(
            "\n".join(map(harmless, _facts(found))),
            fontsize=8,
            color="0.3",
            parse_math=False,  # a path may have dollars
        )
        axes.set_yscale("log")
        axes.set_ylabel("seconds for the whole dump (lower is better)")
        axes.set_xlabel("size of the dump, MiB (further left is better)")
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=_TICKS))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.grid(alpha=0.25, which="both", linewidth=0.5)
        axes.margins(0.14, 0.14)
        _draw_limit(axes, found)
        figure.legend(
            *axes.get_legend_handles_labels(),
            title="engine (bold: the default of its format)",
            loc="outside right center",
            frameon=False,
            fontsize=8,
        )
        _draw_labels(figure, axes, found)
        return saved(figure, kind)


def _place(each: Candidate) -> tuple[float, float]:
    return each.output_bytes / _MIB, each.seconds


def _facts(found: Benchmark) -> list[str]:
    """Say in a few lines what was measured, and what the fastest dump would be at other levels."""
    lines = [
        *textwrap.wrap(harmless(found.source), _TITLE_WIDTH),
        f"{format_size(found.data_bytes)} of data, sample of {format_size(found.sample_bytes)}, "
        f"{counted(found.threads, 'thread')}; {found.machine}",
    ]
    told = [
        f"level {each.dump_level}: {format_size(dump.output_bytes)} in {dump.seconds:.2f} s"
        if (dump := each.candidate) is not None
        else f"level {each.dump_level}: no page types"
        for each in found.levels
    ]
    if told:
        lines.append(f"fastest at {', '.join(told)}")
    if found.busy:
        lines.append(f"the machine was busy: others had {found.others_share:.0%} of the processors")
    return lines


def _draw_points(axes: Axes, found: Benchmark) -> None:
    """Draw a line for each engine through its levels; its codec gives the colour, the engine the marker."""
    engines: dict[tuple[str, str], list[Candidate]] = {}
    for each in sorted(found.candidates, key=lambda each: (each.codec, each.level or 0)):
        engines.setdefault((each.codec, each.engine), []).append(each)
    seen: dict[str, int] = {}
    best = set(_best(found))
    for (codec, engine), levels in engines.items():
        marker = _MARKERS[seen.setdefault(codec, 0) % len(_MARKERS)]
        seen[codec] += 1
        colour = _COLOURS.get(codec, "0.3")
        label = levels[0].format if not engine else engine if engine == codec else f"{engine} ({codec})"
        x, y = zip(*map(_place, levels), strict=True)
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        axes.plot(
            x, y, marker, color=colour, markersize=4, fillstyle="none", alpha=0.7, zorder=3, label=label
        )
        filled = [_place(each) for each in levels if each in best]
        if filled:
            axes.plot(*zip(*filled, strict=True), marker, color=colour, markersize=6, zorder=4)
    frontier = sorted(map(_place, best))
    axes.step(
        *zip(*frontier, strict=True),
        where="post",
        label="no other is both\nfaster and smaller",
        color="0.25",
        linewidth=1.2,
        linestyle="--",
        zorder=1,
    )


def _best(found: Benchmark) -> list[Candidate]:
    """Give those that no other one beats by being as short and as small, the smallest first."""
    best: list[Candidate] = []
    for each in sorted(found.candidates, key=lambda each: (each.output_bytes, each.seconds)):
        if not best or each.seconds < best[-1].seconds:
            best.append(each)
    return best


def _draw_limit(axes: Axes, found: Benchmark) -> None:
    """Draw how long the disk takes for each size: no dump is below this line."""
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    rate = found.disk.bytes_per_second
    sizes = [max(left, 1e-3 * right) + (right - max(left, 1e-3 * right)) * at / 64 for at in range(65)]
    axes.plot(
        sizes,
        [size * _MIB / rate for size in sizes],
        color="#b00020",
        linewidth=1.5,
        zorder=1.5,
        label=f"the disk's limit:\n{rate / 1e6:.0f} MB/s",
    )
    axes.set_xlim(left, right)
    axes.set_ylim(min(low, min(map(_place, found.candidates))[0] * _MIB / rate / 1.3), high)


def _draw_recommended(figure: Figure, axes: Axes, found: Benchmark) -> None:
    """Draw a ring around each choice; a legend below tells its options, seconds and size."""
    rings: list[Line2D] = []
    for (role, each), colour in zip(found.recommended.items(), _RINGS, strict=False):
        x, y = _place(each)
        # One that is several choices has a ring for each.
        size = 13 + 5 * sum(before is each for before in list(found.recommended.values())[: len(rings)])
        told = f"{role}: {each.options} ({each.seconds:.2f} s, {format_size(each.output_bytes)})"
        rings += axes.plot(
            [x], [y], "o", color=colour, markersize=size, fillstyle="none", markeredgewidth=2, zorder=5
        )
        rings[-1].set_gid(told)
    figure.legend(
        rings,
        [str(ring.get_gid()) for ring in rings],
        title="recommended",
        loc="outside lower center",
        frameon=False,
        fontsize=9,
        markerscale=0.7,
    )


def _draw_labels(figure: Figure, axes: Axes, found: Benchmark) -> None:
    """Name the efficient points and the defaults, where a name hides neither a point nor another name."""
    figure.draw_without_rendering()
    # Places are final now; a new draw must not move the axes.
    figure.set_layout_engine("none")
    matplotlib = load_matplotlib()
    best = _best(found)
    places = [_place(each) for each in found.candidates]
    # The level parts of the frontier are in the way too; along the others, names lie left or right.
    for (left, seconds), (right, _) in itertools.pairwise(map(_place, best)):
        places += [(left + (right - left) * part / 20, seconds) for part in range(21)]
    left, right = axes.get_xlim()
    rate = found.disk.bytes_per_second
    limit = (left + (right - left) * (part + 1) / 200 for part in range(200))
    places += [(size, size * _MIB / rate) for size in limit if size > 0]
    taken = []
    for x, y in axes.transData.transform(places):
        taken.append(matplotlib.transforms.Bbox.from_bounds(x - 7, y - 7, 14, 14))
    for x, y in axes.transData.transform([_place(each) for each in found.recommended.values()]):
        taken.append(matplotlib.transforms.Bbox.from_bounds(x - 16, y - 16, 32, 32))
    # Other choices of the trials and the defaults have names, too, and are named last.
    named = best + [each for each in found.candidates if each.default and each not in best]
    for each in named:
        label = axes.annotate(
            each.name,
            _place(each),
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
    axes.annotate("", _place(each), xytext=end, textcoords="offset points", arrowprops=line)


def _inside(box: Bbox, outer: Bbox) -> bool:
    return bool(outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1)
