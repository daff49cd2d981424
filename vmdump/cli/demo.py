"""``vmdump demo``: a synthetic guest through every format and engine, each page read back."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from vmdump import Report, capabilities, dump
from vmdump import open as open_dump
from vmdump.cli.help import TaughtCommand
from vmdump.cli.hints import engine_hint
from vmdump.cli.options import threads_option
from vmdump.cli.printing import console, say_for_now, say_json
from vmdump.errors import FormatError
from vmdump.opening import opened
from vmdump.operations.verify import compare
from vmdump.pipeline.workers import check_threads
from vmdump.units import counted, format_size

if TYPE_CHECKING:
    from vmdump import EngineName, Format, Layout

__all__ = ["demo_command"]


@dataclass(frozen=True)
class _Case:
    format: Format
    layout: Layout
    engine: EngineName | None


def _cases() -> Iterator[_Case]:
    found = capabilities()
    yield _Case("elf", "standard", None)
    for state in found.formats:
        if state.codec and state.available and not state.name.startswith("kdump-raw"):
            name = cast("Format", state.name)
            for engine in found.engines:
                if engine.codec == state.codec and not engine.missing:
                    yield _Case(name, "standard", cast("EngineName", engine.name))
            yield _Case(name, "flattened", cast("EngineName | None", state.default_engine))


@click.command(
    "demo",
    cls=TaughtCommand,
    examples=(
        "vmdump demo",
        "vmdump demo 1G --json",
    ),
)
@click.argument("size", default="256M")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def demo_command(size: str, threads: int | None, as_json: bool) -> None:
    """Dump a synthetic guest of SIZE in every format and read each page back."""
    source = f"synthetic:{size}?seed=1&fill=0.5"
    threads = check_threads(threads)
    rows = []
    with tempfile.TemporaryDirectory(prefix="vmdump-demo-") as folder:
        for case in _cases():
            path = os.path.join(folder, f"{case.format}-{case.layout}-{case.engine}")
            if sys.stderr.isatty():
                say_for_now(f"{case.format} {case.engine or ''} ...")
            report = dump(
                source, path, format=case.format, layout=case.layout, engine=case.engine, threads=threads
            )
            rows.append((report, _verify(source, path, threads)))
            os.unlink(path)
    if sys.stderr.isatty():
        say_for_now("")
    if as_json:
        say_json([_as_json(report, pages) for report, pages in rows])
    else:
        _show(source, threads, rows)


def _verify(source: str, path: str, threads: int) -> int:
    """Compare every page of a dump with the guest; give their number."""
    with opened(source) as guest, open_dump(path) as written:
        found = compare(guest, written, threads=threads)
        if not found.equal:
            differing = counted(found.different_pages, "page differs", "pages differ")
            where = differing if found.different else "its blocks differ"
            raise FormatError(f"the dump does not hold the guest: {where}", path=path)
        return found.bytes_compared // written.page_size


def _as_json(report: Report, pages: int) -> dict[str, Any]:
    return {**report.as_dict(), "output": "", "pages_verified": pages}


def _show(source: str, threads: int, rows: list[tuple[Report, int]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    guest_size = format_size(rows[0][0].guest_bytes)
    # 79 columns: they fit a terminal of the usual width.
    table = Table(
        title=f"{source}: {guest_size} of guest memory, {counted(threads, 'thread')}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("format", "layout", "engine"):
        table.add_column(name, no_wrap=True)
    for name in ("s", "MB/s", "MiB", "ratio", "pages"):
        table.add_column(name, justify="right", no_wrap=True)
    codec = rows[0][0].codec
    for report, pages in rows:
        if report.codec != codec:
            table.add_section()
            codec = report.codec
        table.add_row(
            report.format,
            report.layout,
            report.engine or "-",
            f"{report.seconds:.2f}",
            f"{report.bytes_per_second / 1e6:.0f}",
            f"{report.output_bytes / (1 << 20):.1f}",
            f"{report.output_bytes / report.guest_bytes:.3f}",
            Text(str(pages), "green"),
        )
    terminal = console()
    terminal.print(table)
    terminal.print(
        f"{platform.system()} {platform.release()}, {platform.machine()}, "
        f"Python {platform.python_version()}. "
        "MB/s: guest memory without its holes dumped a second, syncing to disk included. "
        "Ratio: dump to guest. "
        "Pages: all were read back from the dump and compared with the guest."
    )
    if hint := engine_hint((report.codec, report.engine) for report, _ in rows):
        terminal.print(hint)
