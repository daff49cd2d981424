"""``vmdump dmesg``."""

from __future__ import annotations

import click

from vmdump import dmesg

__all__ = ["dmesg_command"]


@click.command("dmesg")
@click.argument("source", metavar="DUMP")
def dmesg_command(source: str) -> None:
    """Print the kernel's log of a Linux guest, as 'makedumpfile --dump-dmesg' does.

    DUMP is a dump or whatever else 'vmdump dump' takes as a source. It takes no debugging symbols.
    """
    for record in dmesg(source):
        click.echo(record.line())
