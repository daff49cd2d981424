"""``vmdump serve``."""

from __future__ import annotations

import sys

import click

from vmdump.cli.help import TaughtCommand
from vmdump.cli.printing import say
from vmdump.cli.unstoppable import unstoppable
from vmdump.errors import RequestError

__all__ = ["serve_command"]

_SCHEME = "qmp:"


@click.command(
    "serve",
    cls=TaughtCommand,
    examples=(
        "vmdump serve qmp:/run/vm.qmp --listen /run/vm-dump.qmp",
        "qmp-shell /run/vm-dump.qmp",
    ),
)
@click.argument("source")
@click.option("--listen", required=True, metavar="SOCKET", help="The Unix socket to make for clients.")
def serve_command(source: str, listen: str) -> None:
    """Serve QMP in front of QEMU, and make the dumps that clients ask for.

    SOURCE is qmp:SOCKET, with the socket of QEMU. Clients connect to the socket of --listen as they would to
    QEMU's, several at a time.

    The dumps that they ask for, by dump-guest-memory or by the human monitor's command of this name, are
    made by vmdump, which pauses the guest for a moment only. All other commands go to QEMU.

    The command ends when QEMU does. Ctrl-C and SIGTERM end it as well: a dump is cancelled then, and the
    guest runs again.
    """
    if not source.startswith(_SCHEME):
        raise RequestError(
            f"source: {source!r} has no QMP to be served; write qmp:SOCKET", parameter="source"
        )
    from vmdump.serve.server import serve  # asyncio and QMP's client take 0.1 s to load

    def say_ready() -> None:
        if sys.stderr.isatty():
            say(f"{listen}: clients can connect; Ctrl-C ends", err=True)

    with unstoppable(source):
        serve(source.removeprefix(_SCHEME), listen, on_ready=say_ready)
