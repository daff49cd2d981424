"""``vmdump bench``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from vmdump.cli.chart import FORMATS, draw_picture, draw_text, letters
from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import (
    as_size,
    as_source,
    completing,
    exclude_options,
    excluded,
    quiet_option,
    source_name,
)
from vmdump.cli.pictures import picture_file
from vmdump.cli.printing import console, say, say_json
from vmdump.cli.progress import progress_bar
from vmdump.operations.bench.bench import Benchmark, bench
from vmdump.operations.bench.forecast import Candidate
from vmdump.units import counted, format_size

__all__ = ["bench_command"]


@click.command(
    "bench",
    cls=TaughtCommand,
    examples=(
        "vmdump bench qmp:/run/vm.qmp --to /var/crash",
        "vmdump bench vm.elf --all --picture vm.svg",
    ),
    takes_sources=True,
)
@click.argument("source", nargs=-1, required=True, callback=as_source, shell_complete=completing("source"))
@click.option(
    "--to", metavar="FOLDER", default=".", help="Where the dump is to go; the current folder, if not given."
)
@click.option("-j", "--threads", type=int, help="Worker threads of the dump; all processors, if not given.")
@click.option(
    "--sample",
    callback=as_size,
    default="32M",
    show_default=True,
    metavar="SIZE",
    help="Guest memory to look at, holes not counted.",
)
@click.option(
    "--all", "show_all", is_flag=True, help="Show every level, not only defaults and efficient ones."
)
@click.option(
    "--picture", metavar="FILE", help="Draw seconds against size: a .svg, .png or .pdf (needs matplotlib)."
)
@click.option("--force", is_flag=True, help="Replace an existing picture.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on standard output.")
@exclude_options
@quiet_option
def bench_command(
    source: str | tuple[str, ...],
    to: str,
    threads: int | None,
    sample: int,
    show_all: bool,
    picture: str | None,
    force: bool,
    as_json: bool,
    dump_level: int,
    exclude: str | None,
    quiet: bool,
) -> None:
    """Tell which compression is best for the guest SOURCE, this machine and this disk.

    Each engine packs a sample of the guest's pages at each of its levels, on one processor; that takes about
    20 s. The disk is measured with a file without a name. From both follows what a whole dump would take.
    SOURCE is as for 'vmdump dump'; a live guest runs on.
    """
    with picture_file(picture, FORMATS, force=force) as drawn:
        shown = sys.stderr.isatty() and not quiet
        with progress_bar(source_name(source), shown=shown, of_bytes=False) as progress:
            found = bench(
                source,
                to=to,
                threads=threads,
                sample=sample,
                exclude=excluded(dump_level, exclude),
                progress=progress,
            )
        drawn(lambda kind: draw_picture(found, kind))
    if as_json:
        say_json(found.as_dict())
    else:
        _show(found, show_all=show_all, threads_given=threads is not None)


def _show(found: Benchmark, *, show_all: bool, threads_given: bool) -> None:
    from rich import box
    from rich.table import Table

    named = letters(found.candidates)
    # 79 columns, as in the demo: ten columns have no room for more padding.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "format", "engine", "level"):
        table.add_column(name, no_wrap=True)
    for name in ("MB/s", "±%", "ratio", "MiB", "s", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = [each for each in found.candidates if show_all or each.efficient or each.default]
    for each in shown:
        table.add_row(*_row(each, named.get(each, "")), style="" if each.efficient else "dim")
    terminal = console()
    filters = found.dump_level > 1
    say(
        f"{found.source}: {format_size(found.data_bytes)} of data"
        f"{f' at level {found.dump_level}' if filters else ''}, {found.zero_share:.0%} of it "
        f"{'left out or zero' if filters else 'zero pages'} (sample: {format_size(found.sample_bytes)})"
    )
    rates = found.disk.bytes_per_second, found.disk.slowest, found.disk.fastest
    rate, slowest, fastest = (f"{each / 1e6:.0f}" for each in rates)
    say(f"{found.disk.folder}: {rate} MB/s ({slowest} to {fastest}); {found.machine}")
    terminal.print(table)
    say("Letters: no other is both faster and smaller. *: the default of its format.")
    say("MB/s, ratio: of pages that are not zero, by one processor; ±%: in three rounds.")
    threads = counted(found.threads, "thread")
    say(f"MiB, s: the whole dump with {threads}; limit: the bottleneck.")
    if found.busy:
        say(
            f"The machine is busy: others had {found.others_share:.0%} of the processors meanwhile.",
            "The forecast leaves them out: a dump takes longer now where cpu is the limit.",
        )
    hidden = len(found.candidates) - len(shown)
    if hidden:
        say(f"{counted(hidden, 'more is', 'more are')} beaten by one above; --all shows all.")
    room = found.disk.room
    too_large = sum(each.output_bytes > room for each in found.candidates)
    if too_large:
        dumps = counted(too_large, "of them is", "of them are")
        say(f"{dumps} larger than the {format_size(room)} free there.")
    for name, reason in found.missing.items():
        say(f"{name}: {reason}")
    level = f" -d {found.dump_level}" if filters else ""
    if terminal.is_terminal:
        say("", *draw_text(found.candidates).split("\n"))
    say("", *level_lines(found))
    say("", *answer(found, level + (f" -j {found.threads}" if threads_given else "")))


def _row(each: Candidate, letter: str) -> Sequence[str]:
    level = str(each.level) if each.level_matters else "-"
    mark = "*" if each.default and each.engine else " "
    speed = spread = "-"
    if each.speed:
        speed = f"{each.speed / 1e6:.0f}"
        spread = f"{(each.fastest - each.slowest) / 2 / each.speed * 100:.0f}"
    return (
        letter,
        each.format,
        each.engine or "-",
        f"{level}{mark}",
        speed,
        spread,
        f"{each.ratio:.3f}",
        f"{each.output_bytes / (1 << 20):.0f}",
        f"{each.seconds:.2f}" if each.seconds < 100 else f"{each.seconds:.0f}",
        "cpu" if each.limited_by == "processor" else each.limited_by,
    )


def level_lines(found: Benchmark) -> list[str]:
    """Say what the fastest dump would be at other levels of filtering, one line each."""
    lines = []
    for each in found.levels:
        title = f"level {each.dump_level}:".ljust(len("level 31:"))
        dump = each.candidate
        if dump is None:
            lines.append(f"{title} {each.missing}")
            continue
        options = dump.options + (f" -d {each.dump_level}" if each.dump_level > 1 else "")
        size, stored = format_size(dump.output_bytes), format_size(each.stored_bytes)
        lines.append(f"{title} {dump.seconds:.2f} s, {size} for {stored} of pages: {options}")
    return lines


def answer(found: Benchmark, more: str = "") -> list[str]:
    """Say what to type for the fastest and the smallest dump, and for the best that the disk keeps busy.

    Parameters
    ----------
    found : Benchmark
        What to choose from.
    more : str
        Put behind each line's options.
    """
    choices = found.recommended
    width = max(map(len, choices)) + 1
    lines = []
    for name, each in choices.items():
        cost = f"({each.seconds:.2f} s, {format_size(each.output_bytes)})"
        lines.append(f"{name + ':':{width}} {each.options}{more} {cost}")
    return lines
