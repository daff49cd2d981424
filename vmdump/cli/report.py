"""``vmdump report``."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click

from vmdump import DumpInfo, LogRecord, PageUsage, Verification, dmesg, info, page_types, verify
from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import as_source, quiet_option, source_name, threads_option
from vmdump.cli.printing import say
from vmdump.cli.progress import progress_bar
from vmdump.cli.report_page import Facts, Log, Registers, page
from vmdump.errors import CapabilityError, VmdumpError
from vmdump.opening import opened_in_part, session
from vmdump.operations.density import density
from vmdump.sinks.opening import open_sink
from vmdump.units import format_size

if TYPE_CHECKING:
    from vmdump.opening import AnySource
    from vmdump.sinks.base import Sink

__all__ = ["report_command"]

_ALL = 16 << 30
"""Bytes of guest memory up to which all of it is read, to verify it and to tell what pages are used for."""
_RECORDS = 20_000
_TEXT = 4 << 20
"""Records of the log, and bytes of their texts: the last ones."""
_CPUS = 256

_Found = TypeVar("_Found")
_Progress = Callable[[int, int], None] | None


@click.command(
    "report",
    cls=TaughtCommand,
    examples=("vmdump report vm.kdump -o vm.html",),
)
@click.argument("dump", nargs=-1, required=True, callback=as_source)
@click.option("-o", "--output", required=True, metavar="PATH", help="The page to write: report.html.")
@click.option("--force", is_flag=True, help="Replace an output file that is there.")
@threads_option
@quiet_option
def report_command(
    dump: str | tuple[str, ...], output: str, force: bool, threads: int | None, quiet: bool
) -> None:
    """Write one HTML page about DUMP that can be mailed, and opens without a network.

    It tells what the dump is, how it holds the guest's memory and what that is used for, where its bytes are,
    the kernel's log, each vCPU's registers, and whether every page is intact. Of guests with more than 16 GiB
    of memory not all is read, and the page says so. DUMP is what 'vmdump info' takes.
    """
    with open_sink(output, force=force) as sink:
        with progress_bar(source_name(dump), shown=sys.stderr.isatty() and not quiet) as progress:
            found = _facts(dump, sink, threads, progress)
        made = page(found).encode("utf-8", "backslashreplace")
        with sink.errors("cannot write"):
            channel = sink.channel()
            channel.write(made)
            channel.flush()
        sink.set_size(channel.position)
    if not quiet:
        where = "standard output" if output == "-" else output
        say(f"{where}: {format_size(len(made))}, for any browser", err=True)


def _facts(dump: str | tuple[str, ...], sink: Sink, threads: int | None, progress: _Progress) -> Facts:
    """Gather what the page has; what cannot be told is replaced by the reason."""
    with ExitStack() as stack:
        source: AnySource = dump
        with suppress(VmdumpError):  # it may open in part
            # Opened once, so that a VMCOREINFO that has to be looked for is looked for once.
            source = stack.enter_context(session(dump))
        with opened_in_part(source, search=False) as (guest, damage):
            # Before the minutes that the rest takes: the page may not take the place of the dump.
            sink.begin(guest.files, guest.in_use)
            small = guest.size <= _ALL
            registers = _or_reason(lambda: _registers(guest.cpus))
        about = info(source, search=small, progress=progress)

        def types() -> PageUsage:
            _demand(small, about, "read to tell what it is used for", "info --usage")
            return page_types(source, threads=threads, progress=progress)

        def verified() -> Verification:
            _demand(small and not damage, about, damage or "read to see whether it is intact", "verify")
            return verify(source, threads=threads, progress=progress)

        return Facts(
            name=source_name(dump).rpartition("/")[2],
            made=datetime.now(UTC),
            info=about,
            density=_or_reason(lambda: density(source)),
            usage=_or_reason(types),
            log=_or_reason(lambda: _log(dmesg(source, search=small))),
            registers=registers,
            verification=_or_reason(verified),
        )


def _or_reason(tell: Callable[[], _Found]) -> _Found | str:
    try:
        return tell()
    except VmdumpError as error:
        return str(error)


def _demand(possible: bool, about: DumpInfo, what: str, command: str) -> None:
    """Refuse what would take too long, or what a damaged dump does not give.

    Raises
    ------
    CapabilityError
        It would.
    """
    if not possible:
        raise CapabilityError(
            what
            if about.damage
            else f"{format_size(about.guest_bytes)} of memory were not {what}; 'vmdump {command}' does that"
        )


def _registers(cpus: Sequence[Mapping[str, int]]) -> Registers:
    return Registers(len(cpus), tuple(dict(each) for each in cpus[:_CPUS]))


def _log(records: Iterable[LogRecord]) -> Log:
    kept = deque[LogRecord]()
    size = dropped = 0
    for record in records:
        kept.append(record)
        size += len(record.text)
        while len(kept) > _RECORDS or size > _TEXT:
            size -= len(kept.popleft().text)
            dropped += 1
    return Log(tuple(kept), dropped)
