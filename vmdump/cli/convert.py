"""``vmdump convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import (
    as_source,
    check_report,
    completing,
    exclude_options,
    excluded,
    format_option,
    json_option,
    keep_partial_option,
    layout_option,
    progress_options,
    search_option,
    source_name,
    threads_option,
    vmcoreinfo_option,
)
from vmdump.cli.phases import telling
from vmdump.cli.progress import say_report
from vmdump.errors import IncompleteDump
from vmdump.operations.convert import check_conversion
from vmdump.pipeline.control import Control
from vmdump.units import counted

if TYPE_CHECKING:
    from vmdump import EngineName, Format, Layout

__all__ = ["convert_command"]


@click.command(
    "convert",
    cls=TaughtCommand,
    examples=(
        "vmdump convert vm.elf vm.kdump -f kdump-zstd",
        "vmdump convert vm.kdump vm.elf -f elf",
        "vmdump convert vm.kdump small.kdump -d 31",
        "vmdump convert damaged.kdump rest.kdump --keep-going",
    ),
)
@click.argument("source", nargs=-1, required=True, callback=as_source, shell_complete=completing("source"))
@click.argument("output")
@format_option
@layout_option
@click.option("--split", type=int, metavar="N", help="Write a split set of N files, OUTPUT.1 to OUTPUT.N.")
@click.option(
    "--engine", shell_complete=completing("engine"), help="Compression library; packs all pages again."
)
@click.option(
    "--level", type=int, help="Compression level, on the engine's own scale; packs all pages again."
)
@threads_option
@exclude_options
@vmcoreinfo_option
@search_option
@click.option("--keep-going", is_flag=True, help="Exclude the lost pages of a damaged dump.")
@click.option("--force", is_flag=True, help="Replace existing output files.")
@keep_partial_option
@json_option
@progress_options
def convert_command(
    source: str | tuple[str, ...],
    output: str,
    format_name: Format,
    layout: Layout,
    split: int | None,
    engine: EngineName | None,
    level: int | None,
    threads: int | None,
    vmcoreinfo: str | None,
    no_search: bool,
    keep_going: bool,
    dump_level: int,
    exclude: str | None,
    force: bool,
    keep_partial: bool,
    as_json: bool,
    quiet: bool,
    lines: bool,
    log_json: bool,
) -> None:
    """Write the dump SOURCE again as OUTPUT, in another format or layout.

    SOURCE is the path of a dump of any kind, raw:PATH?machine=q35&arch=x86_64&page_size=4K (see 'vmdump dump
    --help'), or the paths of all parts of a split set. OUTPUT is a path, - for standard output, or fd:N.
    Pages that are compressed with the codec of FORMAT already are copied as they are, unless --engine or
    --level is given. With --keep-going, lost pages are excluded, OUTPUT is marked as incomplete, and
    the exit code is 15.
    """
    check_report(output, as_json=as_json)
    control = Control()
    with telling(output, control, quiet=quiet, lines=lines, log_json=log_json):
        report = check_conversion(
            source,
            output,
            control,
            format=format_name,
            layout=layout,
            split=split,
            engine=engine,
            level=level,
            threads=threads,
            vmcoreinfo=vmcoreinfo,
            search=not no_search,
            force=force,
            keep_partial=keep_partial,
            keep_going=keep_going,
            exclude=excluded(dump_level, exclude),
        ).run(control)
    say_report(report, as_json=as_json, quiet=quiet, log_json=log_json, hints=not engine)
    if report.lost_pages:
        raise IncompleteDump(
            f"{report.output}: the dump is written, but {counted(report.lost_pages, 'page')} of "
            f"{source_name(source)} cannot be read; what is lost is excluded, and it is marked as incomplete",
            unreadable=(),
        )
