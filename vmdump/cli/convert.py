"""``vmdump convert``."""

from __future__ import annotations

import json
import sys

import click

from vmdump import convert
from vmdump.cli.progress import progress_bar, summary
from vmdump.cli.sources import as_source
from vmdump.errors import RequestError
from vmdump.formats.names import DEFAULT_FORMAT, FORMATS, LAYOUTS

__all__ = ["convert_command"]


@click.command("convert")
@click.argument("source", nargs=-1, required=True, callback=as_source)
@click.argument("output")
@click.option(
    "-f",
    "--format",
    "format_name",
    default=DEFAULT_FORMAT,
    show_default=True,
    metavar="FORMAT",
    help=f"One of {', '.join(known.name for known in FORMATS)}.",
)
@click.option("--layout", default="auto", show_default=True, help=f"Of a kdump file: {', '.join(LAYOUTS)}.")
@click.option("--split", type=int, metavar="N", help="Write a split set of N files, OUTPUT.1 to OUTPUT.N.")
@click.option("--engine", help="Compression library; packs all pages again.")
@click.option(
    "--level", type=int, help="Compression level, on the engine's own scale; packs all pages again."
)
@click.option("-j", "--threads", type=int, help="Worker threads; all processors, if not given.")
@click.option("--force", is_flag=True, help="Replace output files that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print a report as JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def convert_command(
    source: str | tuple[str, ...],
    output: str,
    format_name: str,
    layout: str,
    split: int | None,
    engine: str | None,
    level: int | None,
    threads: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the dump SOURCE again as OUTPUT, in another format or layout.

    SOURCE is the path of a dump of any kind, raw:PATH?base=0x0&arch=x86_64&page_size=4K, or the paths of all
    parts of a split set. OUTPUT is a path, - for standard output, or fd:N. Pages that are compressed with the
    codec of FORMAT already are copied as they are, unless --engine or --level is given.
    """
    if as_json and output in ("-", "fd:1"):
        raise RequestError(
            "json: the dump and the report cannot both go to standard output", parameter="json"
        )
    shown = sys.stderr.isatty() and not quiet
    with progress_bar(output, shown=shown) as progress:
        report = convert(
            source,
            output,
            format=format_name,
            layout=layout,
            split=split,
            engine=engine,
            level=level,
            threads=threads,
            force=force,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    elif shown:
        click.echo(summary(report), err=True)
