"""``vmdump guests``."""

from __future__ import annotations

import os

import click

from vmdump import RunningGuest, guests
from vmdump.cli.help import TaughtCommand
from vmdump.cli.printing import harmless, say, say_json
from vmdump.cli.root import as_root, own_words
from vmdump.units import format_size

__all__ = ["guests_command"]

_INDENT = "  "
_LETTERS = frozenset("-_.")
_LONGEST = 60
"""Characters of a guest's name that its dump has: a file's name has 255 bytes."""


@click.command(
    "guests",
    cls=TaughtCommand,
    examples=(
        "vmdump guests",
        "vmdump guests --json",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def guests_command(as_json: bool) -> None:
    """List the running guests of this host, and the command that dumps each of them.

    These are the processes of QEMU, libvirt's as well. No guest is disturbed: nothing connects to its
    monitor. For a guest that cannot be dumped, the reason is given, and for one that takes more rights, which
    ones.
    """
    found = guests()
    if as_json:
        say_json([guest.as_dict() for guest in found])
        return
    if not found:
        say("No guest of QEMU runs here that this user can see.")
        if os.geteuid() != 0:
            say("On a host that hides processes (hidepid), root sees more.")
    width = click.get_current_context().terminal_width or _columns()
    for number, guest in enumerate(found):
        if number:
            say("")
        _show(guest, width)


def _columns() -> int:
    from shutil import get_terminal_size

    return get_terminal_size().columns


def _show(guest: RunningGuest, width: int) -> None:
    title = guest.name or guest.uuid or f"process {guest.pid}"
    kind = " ".join(filter(None, (guest.arch, guest.accelerator)))
    size = f"{format_size(guest.memory)} of memory" if guest.memory else "memory of unknown size"
    resident = f"{format_size(guest.resident)} resident"
    _paragraph(f"{title}: {size}, {resident}; {kind}, process {guest.pid} of {guest.user}", width, indent="")
    if guest.domain and guest.uuid:
        _paragraph(f"libvirt's domain {guest.uuid}", width)
    elif guest.uuid and guest.name:
        _paragraph(f"UUID {guest.uuid}", width)
    if guest.reason:
        _paragraph(f"Cannot be dumped: {guest.reason}.", width)
    if guest.missing_rights:
        _paragraph(f"Rights are missing: {guest.missing_rights}.", width)
    if guest.source:
        words = ["dump", guest.source, f"{_file_name(title)}.kdump"]
        # Not wrapped: it is to be copied.
        say(_INDENT + (as_root(words) if guest.missing_rights else own_words(words)))


def _paragraph(text: str, width: int, indent: str = _INDENT) -> None:
    from textwrap import wrap

    say(
        *wrap(
            harmless(text),
            width,
            initial_indent=indent,
            subsequent_indent=_INDENT * 2,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _file_name(title: str) -> str:
    """Make the name of a file, which a shell, vmdump and a file system take for nothing else."""
    name = "".join(char if char.isalnum() or char in _LETTERS else "-" for char in title[:_LONGEST])
    return name.lstrip("-.") or "guest"
