"""``vmdump repair``."""

from __future__ import annotations

import json
import sys

import click

from vmdump import repair
from vmdump.cli.progress import progress_bar
from vmdump.errors import RequestError

__all__ = ["repair_command"]


@click.command("repair")
@click.argument("damaged")
@click.argument("output")
@click.option("-j", "--threads", type=int, help="Worker threads; all processors, if not given.")
@click.option("--force", is_flag=True, help="Replace an output file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print a report as JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def repair_command(
    damaged: str, output: str, threads: int | None, force: bool, as_json: bool, quiet: bool
) -> None:
    """Write every page of DAMAGED that is whole to OUTPUT, and mark that as incomplete.

    DAMAGED is an ELF core or a kdump file that was cut short, or a flattened one whose end is missing.
    """
    if as_json and output in ("-", "fd:1"):
        raise RequestError(
            "json: the dump and the report cannot both go to standard output", parameter="json"
        )
    with progress_bar(output, shown=sys.stderr.isatty() and not quiet) as progress:
        done = repair(damaged, output, threads=threads, force=force, progress=progress)
    if as_json:
        click.echo(json.dumps(done.as_dict()))
        return
    mark = "marked as incomplete" if done.incomplete else "nothing was lost"
    click.echo(f"{output}: {done.kept_pages} pages kept, {done.lost_pages} lost; {mark}", err=True)
