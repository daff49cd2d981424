"""``vmdump dmesg``."""

from __future__ import annotations

import click

from vmdump import dmesg
from vmdump.cli.options import as_source
from vmdump.cli.printing import say

__all__ = ["dmesg_command"]


@click.command("dmesg")
@click.argument("source", nargs=-1, required=True, callback=as_source, metavar="DUMP...")
def dmesg_command(source: str | tuple[str, ...]) -> None:
    """Print the kernel's log of a Linux guest, as 'makedumpfile --dump-dmesg' does.

    DUMP is a dump, all parts of a split set, or whatever else 'vmdump dump' takes as a source. It takes no
    debugging symbols.
    """
    for record in dmesg(source):
        say(*record.line().split("\n"))
