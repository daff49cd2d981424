"""``vmdump read``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import as_size, as_source, completing, search_option, source_name, vmcoreinfo_option
from vmdump.cli.printing import say
from vmdump.cli.progress import late_bar
from vmdump.errors import ExcludedPage, RequestError
from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import VmcoreinfoChoice
from vmdump.opening import session
from vmdump.sinks.opening import open_sink
from vmdump.units import ADDRESS_LIMIT

__all__ = ["read_command"]

_CHUNK = 1 << 20
_LINE = 16
_HALF = 8


@click.command(
    "read",
    cls=TaughtCommand,
    examples=(
        "vmdump read vm.kdump 0x1000 256",
        "vmdump read vm.kdump 0xffffffff81000000 4K --virtual -o text.bin",
    ),
    takes_sources=True,
)
@click.argument("dump", nargs=-1, required=True, callback=as_source, shell_complete=completing("source"))
@click.argument("address", callback=as_size)
@click.argument("length", callback=as_size)
@click.option("--virtual", is_flag=True, help="ADDRESS is virtual: go through the guest's page tables.")
@vmcoreinfo_option
@search_option
@click.option(
    "--hex", "as_hex", is_flag=True, help="Print it as 'hexdump -Cv' does; so a terminal gets it anyway."
)
@click.option("-o", "--output", default="-", show_default=True, metavar="PATH", help="Where the bytes go.")
@click.option("--force", is_flag=True, help="Replace an output file that is there.")
def read_command(
    dump: str | tuple[str, ...],
    address: int,
    length: int,
    virtual: bool,
    vmcoreinfo: str | None,
    no_search: bool,
    as_hex: bool,
    output: str,
    force: bool,
) -> None:
    """Read LENGTH bytes of the guest's memory at ADDRESS.

    DUMP is a dump, all parts of a split set, or whatever else 'vmdump dump' takes as a source. ADDRESS is
    guest-physical, unless --virtual. Sizes and addresses take 0x, K, M, G and T.
    """
    if address + length > ADDRESS_LIMIT:
        raise RequestError(
            f"length: {length:#x} bytes at {address:#x} end beyond 64 bits", parameter="length"
        )
    choice = VmcoreinfoChoice.read(vmcoreinfo, search=virtual and not no_search)
    to_terminal = output == "-" and sys.stdout.isatty()
    with (
        late_bar(source_name(dump), shown=virtual and sys.stderr.isatty()) as progress,
        session(dump) as source,
    ):
        guest = choice._replace(progress=progress).lazily(source.guest)
        if as_hex and output != "-":
            raise RequestError("hex: goes to standard output, not to a file", parameter="hex")
        if as_hex or to_terminal:
            for at, piece in _pieces(guest, address, length, virtual=virtual):
                say(*_lines(at, piece))
            return
        with open_sink(output, force=force) as sink:
            sink.begin(guest.files, source.in_use)
            channel = sink.channel()
            for _, piece in _pieces(guest, address, length, virtual=virtual):
                with sink.errors("cannot write"):
                    channel.write(piece)
            with sink.errors("cannot write"):
                channel.flush()
            sink.set_size(channel.position)


def _pieces(guest: Guest, address: int, length: int, *, virtual: bool) -> Iterator[tuple[int, bytes]]:
    read = guest.read_virtual if virtual else guest.read
    end = address + length
    while address < end:
        size = min(_CHUNK, end - address)
        try:
            piece = read(address, size)
        except ExcludedPage as error:
            str(error)  # what the page was used for is told while the dump is open
            raise
        yield address, piece
        address += size


def _lines(address: int, data: bytes) -> Iterator[str]:
    for at in range(0, len(data), _LINE):
        line = data[at : at + _LINE]
        left, right = line[:_HALF].hex(" "), line[_HALF:].hex(" ")
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        yield f"{address + at:08x}  {left:<23}  {right:<23}  |{text}|"
