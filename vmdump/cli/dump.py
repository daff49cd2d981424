"""``vmdump dump``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import (
    as_size,
    as_source,
    check_report,
    completing,
    engine_option,
    exclude_options,
    excluded,
    format_option,
    json_option,
    keep_partial_option,
    layout_option,
    progress_options,
    search_option,
    threads_option,
    vmcoreinfo_option,
)
from vmdump.cli.phases import telling
from vmdump.cli.progress import say_report
from vmdump.cli.unstoppable import unstoppable
from vmdump.errors import IncompleteDump
from vmdump.operations.dump import check_request
from vmdump.operations.report import Report
from vmdump.pipeline.control import Control
from vmdump.units import format_size

if TYPE_CHECKING:
    from vmdump import EngineName, Format, Layout

__all__ = ["dump_command"]


_SHOWN = 3
"""Unreadable ranges that the message names."""


@click.command(
    "dump",
    cls=TaughtCommand,
    examples=(
        "vmdump dump qmp:/run/vm.qmp vm.kdump",
        "vmdump dump libvirt:web web.kdump -f kdump-zstd",
        "vmdump dump qmp:/run/vm.qmp vm.elf -f elf",
        "vmdump dump qmp:/run/vm.qmp small.kdump -d 31",
        'vmdump dump qmp:/run/vm.qmp - | ssh host "cat >vm.flat"',
    ),
    takes_sources=True,
)
@click.argument("source", nargs=-1, required=True, callback=as_source, shell_complete=completing("source"))
@click.argument("output")
@format_option
@layout_option
@engine_option
@click.option("--level", type=int, help="Compression level, on the engine's own scale.")
@threads_option
@click.option(
    "--begin", callback=as_size, metavar="SIZE", help="Guest-physical address of the first byte (elf only)."
)
@click.option("--length", callback=as_size, metavar="SIZE", help="Bytes from --begin on (elf only).")
@click.option("--paging", is_flag=True, help="Describe memory by the guest's page tables (elf only).")
@click.option("--no-pause", is_flag=True, help="Let a running guest run on: the dump is fuzzy.")
@exclude_options
@click.option("--force-fuzzy", is_flag=True, help="Exclude pages even with --no-pause: some may be missing.")
@vmcoreinfo_option
@search_option
@click.option("--compat", metavar="qemu", help="Write QEMU 7.2's own file, byte for byte.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@keep_partial_option
@json_option
@progress_options
def dump_command(
    source: str | tuple[str, ...],
    output: str,
    format_name: Format,
    layout: Layout,
    engine: EngineName | None,
    level: int | None,
    threads: int | None,
    begin: int | None,
    length: int | None,
    paging: bool,
    no_pause: bool,
    vmcoreinfo: str | None,
    no_search: bool,
    compat: Literal["qemu"] | None,
    dump_level: int,
    exclude: str | None,
    force_fuzzy: bool,
    force: bool,
    keep_partial: bool,
    as_json: bool,
    quiet: bool,
    lines: bool,
    log_json: bool,
) -> None:
    """Write the memory of SOURCE to OUTPUT.

    A live guest is paused meanwhile; 'vmdump guests' tells its SOURCE. Where raw memory lies is said by
    machine=, as in QEMU, with max_ram_below_4g=, by blocks= or by base=, and arch= and page_size= say the
    rest; several raw:PATH are one guest. OUTPUT is a path, - for standard output, or fd:N. Sizes and
    addresses take 0x, K, M, G and T.
    """
    check_report(output, as_json=as_json)
    control = Control()
    with telling(output, control, quiet=quiet, lines=lines, log_json=log_json), unstoppable(source):
        report = check_request(
            source,
            output,
            format=format_name,
            layout=layout,
            engine=engine,
            level=level,
            threads=threads,
            begin=begin,
            length=length,
            paging=paging,
            force=force,
            keep_partial=keep_partial,
            pause=not no_pause,
            vmcoreinfo=vmcoreinfo,
            search=not no_search,
            compat=compat,
            exclude=excluded(dump_level, exclude),
            force_fuzzy=force_fuzzy,
        ).run(control)
    say_report(report, as_json=as_json, quiet=quiet, log_json=log_json, hints=not engine)
    if report.unreadable:
        raise _incomplete(report)


def _incomplete(report: Report) -> IncompleteDump:
    unreadable = sum(end - begin for begin, end in report.unreadable)
    first = ", ".join(f"{begin:#x}-{end:#x}" for begin, end in report.unreadable[:_SHOWN])
    more = f" and {len(report.unreadable) - _SHOWN} more" if len(report.unreadable) > _SHOWN else ""
    return IncompleteDump(
        f"{report.output}: the dump is written, but the host could not read {format_size(unreadable)} of the "
        f"guest, at {first}{more}; --json lists all",
        unreadable=report.unreadable,
    )
