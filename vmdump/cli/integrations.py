"""``vmdump integrations``."""

from __future__ import annotations

import click

from vmdump.cli.help import TaughtCommand
from vmdump.cli.printing import say
from vmdump.errors import RequestError
from vmdump.integrations.folders import FOLDERS
from vmdump.suggestions import is_it

__all__ = ["integrations_command"]


@click.command(
    "integrations",
    cls=TaughtCommand,
    examples=(
        "vmdump integrations",
        'vol -p "$(vmdump integrations volatility3)" -f vm.kdump linux.pslist',
        'vol -p "$(vmdump integrations volatility3)" -f vmdump:qmp:/run/vm.qmp linux.pslist',
    ),
)
@click.argument("name", required=False)
def integrations_command(name: str | None) -> None:
    """Print the folder of the plugins by which another program reads what vmdump reads.

    NAME is the program: volatility3. Without it, all programs and their folders are listed. drgn needs no
    plugin: in Python, vmdump.drgn.program(SOURCE) gives its program.
    """
    if name is None:
        say(*(f"{program}  {folder}" for program, folder in FOLDERS.items()))
    elif name in FOLDERS:
        say(FOLDERS[name])
    else:
        raise RequestError(
            f"name: no plugins for {name}{is_it(name, FOLDERS)}; there are some for {', '.join(FOLDERS)}",
            parameter="name",
        )
