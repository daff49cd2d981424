"""``vmdump info``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import click

from vmdump import DumpInfo, info
from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import as_size, as_source, completing, search_option, source_name, vmcoreinfo_option
from vmdump.cli.printing import say, say_json
from vmdump.cli.progress import late_bar
from vmdump.errors import RequestError
from vmdump.units import counted, format_size

__all__ = ["info_command"]

_BLOCKS_SHOWN = 16
"""Runs of memory that are printed; --json has all."""
_LAST_SECOND = 253402300799
"""Of the year 9999: a dump may say anything."""


@click.command(
    "info",
    cls=TaughtCommand,
    examples=(
        "vmdump info vm.kdump",
        "vmdump info vm.kdump --show-vmcoreinfo",
        "vmdump info vm.kdump --usage",
        "vmdump info vm.kdump --page 0x1000",
        "vmdump info qmp:/run/vm.qmp --json",
    ),
    takes_sources=True,
)
@click.argument("dump", nargs=-1, required=True, callback=as_source, shell_complete=completing("source"))
@click.option("--usage", is_flag=True, help="Tell what the guest's memory is used for, instead.")
@click.option(
    "--page",
    metavar="ADDRESS",
    callback=as_size,
    help="Tell what the page at a guest-physical address is used for, and whether DUMP has it, instead.",
)
@click.option(
    "--picture", metavar="FILE", help="With --usage, draw a map of it: a .svg or .png (needs matplotlib)."
)
@click.option("--force", is_flag=True, help="Replace an existing picture.")
@click.option("--show-vmcoreinfo", is_flag=True, help="Print the lines of VMCOREINFO, too.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on standard output.")
@vmcoreinfo_option
@search_option
def info_command(
    dump: str | tuple[str, ...],
    usage: bool,
    page: int | None,
    picture: str | None,
    force: bool,
    show_vmcoreinfo: bool,
    as_json: bool,
    vmcoreinfo: str | None,
    no_search: bool,
) -> None:
    """Tell what DUMP is: who made it and when, the guest, its memory, pages by kind, and size.

    Of a live guest it tells whether it runs or is paused, and which QEMU runs it. DUMP is a dump, all parts
    of a split set, or whatever else 'vmdump dump' takes as a source. Page descriptors are read; pages only to
    look for a VMCOREINFO that DUMP does not tell. Of a dump that is damaged or was cut short, it tells
    what is left.

    With --usage, pages by what the guest's Linux uses them for, and what dumps of some levels would hold. All
    data is read; a live guest runs on. With --page, the same of one page.
    """
    _check(usage=usage, page=page, picture=picture, vmcoreinfo=vmcoreinfo, shown=show_vmcoreinfo)
    search = not no_search
    if usage:
        from vmdump.cli.usage import show_usage  # a dump is asked what it is far more often

        show_usage(dump, picture=picture, force=force, as_json=as_json, vmcoreinfo=vmcoreinfo, search=search)
        return
    if page is not None:
        from vmdump.cli.usage import show_page

        show_page(dump, page, as_json=as_json, vmcoreinfo=vmcoreinfo, search=search)
        return
    with late_bar(source_name(dump), shown=sys.stderr.isatty()) as progress:
        found = info(dump, search=search, progress=progress)
    if as_json:
        say_json(found.as_dict())
        return
    for title, text in (*_facts(found), *_details(found), *_vmcoreinfo(found, shown=show_vmcoreinfo)):
        say(f"{title:<12} {text}")


def _check(
    *, usage: bool, page: int | None, picture: str | None, vmcoreinfo: str | None, shown: bool
) -> None:
    """Refuse options that do not go together.

    Raises
    ------
    RequestError
        They do not.
    """
    if usage and page is not None:
        raise RequestError("page: goes without --usage", parameter="page")
    if picture is not None and not usage:
        raise RequestError("picture: goes with --usage", parameter="picture")
    if vmcoreinfo is not None and not usage and page is None:
        raise RequestError("vmcoreinfo: goes with --usage or --page", parameter="vmcoreinfo")
    if shown and (usage or page is not None):
        raise RequestError("show-vmcoreinfo: goes without --usage and --page", parameter="show-vmcoreinfo")


def _facts(found: DumpInfo) -> Iterator[tuple[str, str]]:
    """Give what most want to know."""
    yield from _origin(found)
    if found.damage:
        yield "damaged", f"{found.damage}; this is what is left"
    if found.damaged_pages:
        lacking = (
            counted(found.damaged_pages, "page is lost", "pages are lost")
            if found.damage
            else counted(found.damaged_pages, "descriptor is damaged", "descriptors are damaged")
        )
        yield "incomplete", f"{lacking}, see 'vmdump verify', 'vmdump repair'"
    marked = found.incomplete and not found.damage
    marks = [name for name, on in (("incomplete", marked), ("fuzzy", found.fuzzy)) if on]
    if marks:
        yield "marked", ", ".join(marks)
    yield (
        "guest",
        f"{found.arch}, {found.bits}-bit, {found.byteorder}-endian, {counted(found.cpus, 'vCPU')}, "
        f"pages of {found.page_size} bytes",
    )
    names = " ".join(text for text in found.utsname.values() if text)
    if names:
        yield "system", names
    crashed = found.vmcoreinfo.get("CRASHTIME", "")
    if crashed.isdecimal() and len(crashed) < len(str(_LAST_SECOND)):
        yield "crashed", _moment(int(crashed))
    yield "memory", f"{format_size(found.guest_bytes)} in {counted(len(found.blocks), 'block')}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
    yield "pages", f"{found.pages}{': ' if kinds else ''}{kinds}"
    if found.partial_pages:
        yield "partial", f"{counted(found.partial_pages, 'page')}, inside which memory ends"
    if found.file_bytes and found.live is None:
        yield (
            "size",
            f"{format_size(found.file_bytes)} ({found.file_bytes / found.guest_bytes:.0%} of the guest)",
        )


def _origin(found: DumpInfo) -> Iterator[tuple[str, str]]:
    """Tell where it comes from: a live guest is nothing that was made."""
    if found.live is not None:
        yield "live guest", found.live.state
        machine = f", machine {found.live.machine}" if found.live.machine else ""
        yield "run by", f"{found.maker or 'QEMU'}, process {found.live.process}{machine}"
        yield "reached by", found.live.path
        return
    yield "format", found.format + (f", {found.compression}" if found.compression else "")
    if found.maker:
        yield "made by", found.maker
    if found.written is not None:
        yield "written", _moment(found.written)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _details(found: DumpInfo) -> Iterator[tuple[str, str]]:
    """Give the addresses and the notes."""
    for index, (begin, end) in enumerate(found.blocks[:_BLOCKS_SHOWN]):
        yield "" if index else "blocks", f"{begin:#x}-{end:#x}"
    if len(found.blocks) > _BLOCKS_SHOWN:
        yield "", f"and {len(found.blocks) - _BLOCKS_SHOWN} more"
    yield "phys_base", f"{found.phys_base:#x}"
    yield "notes", ", ".join(f"{count} {name}" for name, count in found.notes.items()) or "none"


def _vmcoreinfo(found: DumpInfo, *, shown: bool) -> Iterator[tuple[str, str]]:
    for place in found.vmcoreinfo_found:
        crashed = "" if place.crashtime is None else f", crashed at {place.crashtime}"
        yield (
            f"found:{place.number}",
            f"VMCOREINFO found in memory at {place.address:#x}: {place.osrelease}{crashed}, "
            f"{counted(place.cpus, 'vCPU')} in it, {place.verdict}{', taken' if place.chosen else ''}",
        )
    if not found.vmcoreinfo:
        yield "VMCOREINFO", "none of those found is taken" if found.vmcoreinfo_found else "none"
    elif not shown:
        yield "VMCOREINFO", f"{counted(len(found.vmcoreinfo), 'line')}, shown by --show-vmcoreinfo"
    else:
        for index, (key, value) in enumerate(found.vmcoreinfo.items()):
            yield "" if index else "VMCOREINFO", f"{key}={value}"
