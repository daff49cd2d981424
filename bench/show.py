"""Show groups: a table of plain text, JSON, and a chart."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from figures import (
    Target,
    engine,
    growth_bytes,
    largest,
    median,
    mib,
    output_bytes,
    own_seconds,
    peak_bytes,
    rate,
    seconds,
    times,
    values,
)
from measure import Group, Row
from rich import box
from rich.console import Console
from rich.table import Table

from vmdump.codecs.registry import engines

WIDTH = 150
COLUMNS = (
    "contestant", "engine", "median s", "min-max", "MB/s", "MiB", "on disk", "CPU s", "peak MiB",
    "growth", "paused s", "x peer", "limit s", "of limit", "process",
)  # fmt: skip
LEGEND = """\
MB/s: guest memory without its holes, a second. MiB, on disk: the output. peak: of the process; of QEMU, what
it grew beside the guest. growth: of the guest's memory, MiB. paused: for how long the guest was. x
peer: how many times as long the peer takes (QEMU's kdump-zlib or elf; makedumpfile -d 1). limit: the same
engine over the same pages in a bare loop, output thrown away; what tells zero pages and incompressible ones
apart is part of it (elf: pages written with O_DIRECT). of limit: the limit's share of vmdump's own seconds;
process: of the whole process. Ratios: medians, over the rounds, of the ratios within a round.
"""


def number(value: float | None, digits: int = 2) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def cells(group: Group, row: Row) -> list[str]:
    """One line of the table."""
    if not row.good:
        return [row.name, row.samples[0].error]
    wall = values(row, seconds)
    peer, limit = group.row(row.peer), group.row(row.limit)
    bytes_a_second = rate(row)
    failed = len(row.samples) - len(row.good)
    return [
        row.name + (f" ({failed} failed)" if failed else ""),
        engine(row),
        number(median(row), 3 if max(wall) < 1 else 2),
        f"{min(wall):.2f}-{max(wall):.2f}",
        number(None if bytes_a_second is None else bytes_a_second / 1e6, 0),
        number(mib(median(row, output_bytes)), 1),
        number(mib(median(row, lambda sample: sample.disk_bytes)), 1),
        number(median(row, lambda sample: sample.cpu_seconds)),
        number(mib(largest(row, peak_bytes)), 0),
        number(mib(largest(row, growth_bytes)), 0),
        number(median(row, lambda sample: sample.still_seconds), 3),
        number(times(peer, row), 1),
        number(median(limit), 3),
        share(times(limit, row, seconds, own_seconds)),
        share(times(limit, row)),
    ]


def print_tables(groups: Sequence[Group], targets: Sequence[Target], *, quick: bool) -> None:
    """Print one table with a part for each group, and the targets; a quick run is not judged by them."""
    console = Console(width=WIDTH, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for title in COLUMNS:
        text = title in ("contestant", "engine")
        table.add_column(title, justify="left" if text else "right", no_wrap=True, overflow="fold")
    notes = []
    for group in groups:
        table.add_section()
        table.add_row(f"[bold]{group.name}[/bold]")
        notes.append(f"{group.name}: {group.about or 'nothing was measured'}")
        if group.error:
            notes.append(f"{group.name}: ended early: {group.error}")
        for row in group.rows:
            if not row.samples or (row.kind == "limit" and row.good):
                continue  # interrupted before; a column of its contestant
            line = cells(group, row)
            if not row.good:
                notes.append(f"{group.name}, {row.name}: {line[1]}")
                line = [row.name, "failed"]
            table.add_row(*line)
    console.print(table)
    console.print("\n".join(notes), markup=False)
    console.print(LEGEND, markup=False)
    console.print(targets_table(targets))
    if quick:
        console.print("A quick run: the targets are for larger guests, so that the verdicts mean nothing.")


def targets_table(targets: Sequence[Target]) -> Table:
    """Each target, its figure, and whether it is met."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("target", no_wrap=True)
    for title in ("is", "has to be"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for target in targets:
        bound = "at most" if target.at_most else "at least"
        demand = f"{bound} {with_unit(target.demand, target.unit)}"
        table.add_row(target.what, with_unit(target.figure, target.unit), demand, target.verdict)
    return table


def with_unit(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return {
        "x": f"{value:.2f} x",
        "%": f"{value:.1%}",
        "s": f"{value:.3g} s",
        "ms": f"{value:.2f} ms",
        "MiB": f"{value:.0f} MiB",
    }[unit]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> dict[str, Any]:
    """Where and with what was measured."""
    return {
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "engines": {one.name: one.version for one in engines() if not one.missing},
    }


def write_json(path: Path, about: dict[str, Any], groups: Sequence[Group], targets: Sequence[Target]) -> None:
    """Write everything, each sample included."""
    figures = {
        **about,
        "groups": [asdict(group) for group in groups],
        "targets": [{**asdict(target), "verdict": target.verdict} for target in targets],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
