"""``vmdump dmesg``."""

from __future__ import annotations

import sys
from itertools import chain, islice

import click

from vmdump import dmesg
from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import as_source, completing, search_option, source_name, vmcoreinfo_option
from vmdump.cli.printing import say
from vmdump.cli.progress import late_bar

__all__ = ["dmesg_command"]

_TABS = "\t"
_SPACES = "\t\v\f\r"
"""What makedumpfile prints as it is; of these only a tab leaves a terminal's other lines alone."""


@click.command(
    "dmesg",
    cls=TaughtCommand,
    examples=(
        "vmdump dmesg vm.kdump | less",
        "vmdump dmesg qmp:/run/vm.qmp",
    ),
    takes_sources=True,
)
@click.argument(
    "source",
    nargs=-1,
    required=True,
    callback=as_source,
    metavar="DUMP...",
    shell_complete=completing("source"),
)
@vmcoreinfo_option
@search_option
def dmesg_command(source: str | tuple[str, ...], vmcoreinfo: str | None, no_search: bool) -> None:
    """Print the kernel's log of a Linux guest, as 'makedumpfile --dump-dmesg' does.

    DUMP is a dump, all parts of a split set, or whatever else 'vmdump dump' takes as a source. It takes no
    debugging symbols.
    """
    with late_bar(source_name(source), shown=sys.stderr.isatty()) as progress:
        records = dmesg(source, vmcoreinfo=vmcoreinfo, search=not no_search, progress=progress)
        first = list(islice(records, 1))
    keep = _TABS if sys.stdout.isatty() else _SPACES
    for record in chain(first, records):
        say(*record.line().split("\n"), keep=keep)
