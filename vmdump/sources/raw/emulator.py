"""The QEMU of this host whose guest has a file as its memory, by its command line."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass

from vmdump.errors import RequestError, SourceError
from vmdump.guest.files import GuestFile
from vmdump.sources.emulator_words import memory_size, options, settings
from vmdump.sources.process.process import Process, command_line
from vmdump.sources.raw.machines import Pieces, machine_layouts
from vmdump.units import parse_size

__all__ = ["FileUser", "find_emulator"]

_PROGRAM = re.compile(r"(?:.*/)?(?:qemu|kvm)[^/]*", re.DOTALL)
_X86 = ("x86_64", "i386")
_LIMIT = "max-ram-below-4g"


@dataclass(frozen=True)
class FileUser:
    """A QEMU that has a file mapped.

    Attributes
    ----------
    text : str
        What it is, for people.
    options : str
        Of ``raw:PATH?...``, where the file is all of its RAM; else empty.
    layouts : tuple of tuple of Piece
        What they mean; none where the file is not all of the RAM, or its machine is not known.
    hint : str
        What else to do.
    """

    text: str
    options: str = ""
    layouts: tuple[Pieces, ...] = ()
    hint = "pause that guest before, or dump it as qmp:SOCKET"


def find_emulator(file: GuestFile, arch: str) -> FileUser | None:
    """Find the QEMU whose guest has this file as its memory, among those that this process may look into.

    Parameters
    ----------
    file : GuestFile
        The file.
    arch : str
        The guest's architecture.

    Returns
    -------
    FileUser or None
        None where there is no such QEMU.
    """
    status, real = os.fstat(file.fd), os.path.realpath(file.path)
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        words = command_line(pid)
        if not words or not _PROGRAM.fullmatch(words[0]):
            continue
        # It may end at any moment, or be another user's.
        with suppress(SourceError):
            process = Process(pid, "QEMU")
            try:
                # On some file systems, btrfs for one, the kernel lists another device than stat() tells.
                mapped = any(
                    mapping.shared
                    and mapping.inode == status.st_ino
                    and (mapping.device == status.st_dev or mapping.path == real)
                    for mapping in process.mappings()
                )
            finally:
                process.close()
            if mapped:
                return _describe(pid, words, file.size, arch)
    return None


def _describe(pid: int, words: list[str], size: int, arch: str) -> FileUser:
    machine, limit = "pc" if arch in _X86 else "", ""
    for name, value in options(words):
        if name in ("machine", "M"):
            chosen = settings(value, "type")
            machine = chosen.get("type", machine)
            limit = chosen.get(_LIMIT, limit)
    user = f"QEMU's process {pid} has it mapped as its guest's memory"
    with suppress(RequestError):
        below = parse_size(limit or "0")
        if memory_size(words) == size:
            layouts = machine_layouts(arch, machine, size, max_ram_below_4g=below)
            described = f"machine={machine}" + (f"&max_ram_below_4g={below:#x}" if below else "")
            return FileUser(user, described, layouts)
    return FileUser(f"{user}, or a part of it")
