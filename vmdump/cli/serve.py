"""``vmdump serve``."""

from __future__ import annotations

import sys

import click

from vmdump.cli.printing import say
from vmdump.cli.unstoppable import unstoppable
from vmdump.errors import RequestError

__all__ = ["serve_command"]

_SCHEME = "qmp:"


@click.command("serve")
@click.argument("source")
@click.option("--listen", required=True, metavar="SOCKET", help="The Unix socket to make for clients.")
def serve_command(source: str, listen: str) -> None:
    r"""Serve QMP in front of QEMU, and make its dumps.

    SOURCE is qmp:SOCKET, QEMU's own. Clients connect to --listen as to QEMU, several at a time. What they
    ask goes to QEMU, but dump-guest-memory, query-dump and query-dump-guest-memory-capability, and the human
    monitor's dump-guest-memory and info dump, vmdump does itself: the guest is paused for moments only.

    \b
    vmdump serve qmp:/run/vm.qmp --listen /run/vm-dump.qmp
    virtme-ng, kata, avocado, qmp-shell /run/vm-dump.qmp: as with QEMU's socket

    It ends with QEMU, or by Ctrl-C or SIGTERM, which cancel a dump; the guest runs then.
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
