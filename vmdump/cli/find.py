"""``vmdump find``."""

from __future__ import annotations

import os
import re
import sys

import click

from vmdump import find
from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import as_size, as_source, json_option, quiet_option, source_name, threads_option
from vmdump.cli.printing import say, say_json
from vmdump.cli.progress import progress_bar
from vmdump.errors import PatternNotFound, RequestError
from vmdump.units import format_size

__all__ = ["find_command"]


@click.command(
    "find",
    cls=TaughtCommand,
    examples=(
        "vmdump find vm.kdump 'Linux version'",
        "vmdump find vm.kdump --hex 'de ad be ef' --begin 1G --length 512M",
        "vmdump find vm.kdump --regex '[0-9a-f]{64}' --count",
    ),
    takes_sources=True,
)
@click.argument("dump", nargs=-1, required=True, callback=as_source)
@click.argument("pattern")
@click.option("--hex", "as_hex", is_flag=True, help="PATTERN is bytes in hexadecimal: 'de ad be ef'.")
@click.option("--regex", is_flag=True, help="PATTERN is a regular expression of Python's 're', of bytes.")
@click.option("--begin", callback=as_size, metavar="ADDRESS", help="Look from this address on.")
@click.option("--length", callback=as_size, metavar="SIZE", help="Look at so many bytes of addresses.")
@click.option("--count", is_flag=True, help="Print how many there are, instead.")
@threads_option
@json_option
@quiet_option
def find_command(
    dump: str | tuple[str, ...],
    pattern: str,
    as_hex: bool,
    regex: bool,
    begin: int | None,
    length: int | None,
    count: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find PATTERN in the guest's memory and print guest-physical addresses, one per line.

    DUMP is a dump, all parts of a split set, or whatever else 'vmdump dump' takes as a source; a live guest
    runs on. PATTERN is text, in UTF-8, unless --hex or --regex. Matches go across pages; in pages that are
    excluded or damaged, nothing is found. Matches of a regular expression do not overlap and have at most
    4096 bytes. 'vmdump read' shows what is around an address. The exit code is 21 if nothing is found.
    """
    wanted = _pattern(pattern, as_hex=as_hex, regex=regex)
    found: list[int] = []
    total = lost = 0

    def skipped(begin: int, end: int) -> None:
        nonlocal lost
        lost += end - begin

    shown = not quiet and sys.stderr.isatty() and not sys.stdout.isatty()
    with progress_bar(source_name(dump), shown=shown) as progress:
        for address in find(
            dump,
            wanted,
            begin=begin,
            length=length,
            threads=threads,
            progress=progress,
            skipped=skipped,
        ):
            total += 1
            if as_json and not count:
                found.append(address)
            elif not count:
                say(f"{address:#x}")
    if as_json:
        say_json({"count": total, "unreadable_bytes": lost, **({} if count else {"addresses": found})})
    elif count:
        say(str(total))
    if lost:
        say(f"vmdump: {format_size(lost)} could not be read and were not searched", err=True)
    if not total:
        raise PatternNotFound(f'{source_name(dump)}: "{pattern}" was not found')


def _pattern(text: str, *, as_hex: bool, regex: bool) -> bytes | re.Pattern[bytes]:
    """Take the pattern as it is meant.

    Raises
    ------
    RequestError
        It is not what it is said to be.
    """
    if as_hex and regex:
        raise RequestError("hex: goes without --regex", parameter="hex")
    if as_hex:
        try:
            return bytes.fromhex(text)
        except ValueError as error:
            raise RequestError(
                f"pattern: {text!r} is not hexadecimal ({error})", parameter="pattern"
            ) from error
    raw = os.fsencode(text)
    if not regex:
        return raw
    try:
        return re.compile(raw)
    except (re.error, OverflowError) as error:
        raise RequestError(
            f"pattern: {text!r} is not a regular expression: {error}", parameter="pattern"
        ) from error
