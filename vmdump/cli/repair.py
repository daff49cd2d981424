"""``vmdump repair``."""

from __future__ import annotations

import sys

import click

from vmdump import repair
from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import as_source, check_report, completing, json_option, quiet_option, threads_option
from vmdump.cli.printing import say, say_json
from vmdump.cli.progress import progress_bar
from vmdump.units import counted

__all__ = ["repair_command"]


@click.command(
    "repair",
    cls=TaughtCommand,
    examples=(
        "vmdump repair damaged.kdump rest.kdump",
        "vmdump repair damaged.elf rest.kdump --json",
    ),
)
@click.argument("damaged", nargs=-1, required=True, callback=as_source, shell_complete=completing("source"))
@click.argument("output")
@threads_option
@click.option("--force", is_flag=True, help="Replace an output file that is there.")
@json_option
@quiet_option
def repair_command(
    damaged: str | tuple[str, ...],
    output: str,
    threads: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write all intact pages of DAMAGED to OUTPUT, and mark it as incomplete.

    DAMAGED is an ELF core, a kdump, LiME or AVML file that was cut short or is damaged, a flattened one whose
    end is missing, or the parts that are left of a split set.
    """
    check_report(output, as_json=as_json)
    with progress_bar(output, shown=sys.stderr.isatty() and not quiet) as progress:
        done = repair(damaged, output, threads=threads, force=force, progress=progress)
    if as_json:
        say_json(done.as_dict())
        return
    mark = "marked as incomplete" if done.incomplete else "nothing was lost"
    say(f"{output}: {counted(done.kept_pages, 'page')} kept, {done.lost_pages} lost; {mark}", err=True)
