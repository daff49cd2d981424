"""``vmdump verify``."""

from __future__ import annotations

import sys

import click

from vmdump import Verification, verify
from vmdump.cli.help import TaughtCommand
from vmdump.cli.options import as_source, completing, json_option, quiet_option, source_name, threads_option
from vmdump.cli.printing import say, say_json
from vmdump.cli.progress import progress_bar
from vmdump.cli.unstoppable import unstoppable
from vmdump.errors import DamagedPages, DifferentMemory, VmdumpError
from vmdump.units import counted, format_size

__all__ = ["verify_command"]

_SHOWN = 8
"""Pages and ranges that are printed; --json has up to 100."""


@click.command(
    "verify",
    cls=TaughtCommand,
    examples=(
        "vmdump verify vm.kdump",
        "vmdump verify vm.kdump --against vm.elf",
        "vmdump verify vm.kdump --json",
    ),
    takes_sources=True,
)
@click.argument("dump", nargs=-1, required=True, callback=as_source, shell_complete=completing("source"))
@click.option("--against", metavar="SOURCE", help="Another dump, or a guest, to compare with page by page.")
@threads_option
@json_option
@quiet_option
def verify_command(
    dump: str | tuple[str, ...], against: str | None, threads: int | None, as_json: bool, quiet: bool
) -> None:
    """Read and decompress every page of DUMP.

    DUMP and SOURCE are dumps or whatever else 'vmdump dump' takes as a source, and DUMP may be all parts of
    a split set; a live guest is paused while it is compared. The exit code is 18 if pages cannot be read, and
    19 if memory differs.
    """
    name = source_name(dump)
    with progress_bar(name, shown=sys.stderr.isatty() and not quiet) as progress, unstoppable(against):
        found = verify(dump, against=against, threads=threads, progress=progress)
    if as_json:
        say_json(found.as_dict())
    else:
        _show(name, against, found)
    error = _error(name, against, found)
    if error is not None:
        raise error


def _show(dump: str, against: str | None, found: Verification) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
    say(f"{dump}: {counted(found.pages, 'page')}: {kinds or 'none intact'}; {found.damaged_pages} damaged")
    for damage in found.damaged[:_SHOWN]:
        say(f"  damaged: pfn {damage.pfn:#x}: {damage.reason}")
    _tell_more(found.damaged_pages)
    compared = found.comparison
    if compared is None:
        return
    say(
        f"against {against}: {format_size(compared.bytes_compared)} compared, "
        f"{counted(compared.different_pages, 'page differs', 'pages differ')}, "
        f"{counted(compared.excluded_pages, 'excluded page')} not compared"
    )
    for address in compared.different[:_SHOWN]:
        say(f"  different: pfn {address // found.page_size:#x}")
    _tell_more(compared.different_pages)
    for name, ranges in ((dump, compared.only_in_dump), (against, compared.only_in_guest)):
        for begin, end in ranges[:_SHOWN]:
            say(f"  only in {name}: {begin:#x}-{end:#x}")
        _tell_more(len(ranges))


def _tell_more(count: int) -> None:
    if count > _SHOWN:
        say(f"  and {count - _SHOWN} more")


def _error(dump: str, against: str | None, found: Verification) -> VmdumpError | None:
    if found.damaged_pages:
        first = found.damaged[0].pfn
        text = f"{dump}: {counted(found.damaged_pages, 'page')} cannot be read, the first is pfn {first:#x}"
        return DamagedPages(text, pages=found.damaged_pages)
    compared = found.comparison
    if compared is None or compared.equal:
        return None
    if compared.different_pages:
        first = compared.different[0] // found.page_size
        differing = counted(compared.different_pages, "page differs", "pages differ")
        text = f"{differing} from {against}, the first is pfn {first:#x}"
    else:
        begin, end = (compared.only_in_guest or compared.only_in_dump)[0]
        text = f"only one of it and {against} has the memory at {begin:#x}-{end:#x}"
    return DifferentMemory(f"{dump}: {text}", pages=compared.different_pages)
