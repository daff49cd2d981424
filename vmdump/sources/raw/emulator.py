"""The QEMU of this host whose guest has a file as its memory, by its command line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from vmdump.errors import RequestError, SourceError
from vmdump.guest.files import GuestFile
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
    machine, limit, ram = "pc" if arch in _X86 else "", "", None
    for name, value in _arguments(words):
        if name in ("machine", "M"):
            settings = _settings(value, "type")
            machine = settings.get("type", machine)
            limit = settings.get(_LIMIT, limit)
        elif name == "m":
            ram = _settings(value, "size").get("size", "")
    user = f"QEMU's process {pid} has it mapped as its guest's memory"
    with suppress(RequestError):
        # QEMU takes a bare number for MiB, the suffixes as usual.
        whole = ram is not None and parse_size(f"{ram}M" if ram.isdecimal() else ram) == size
        below = parse_size(limit or "0")
        if whole:
            layouts = machine_layouts(arch, machine, size, max_ram_below_4g=below)
            options = f"machine={machine}" + (f"&max_ram_below_4g={below:#x}" if below else "")
            return FileUser(user, options, layouts)
    return FileUser(f"{user}, or a part of it")


def _arguments(words: list[str]) -> Iterator[tuple[str, str]]:
    """Give options with the word behind them; QEMU takes one or two dashes."""
    for word, value in pairwise(words[1:]):
        if word.startswith("-"):
            yield word.removeprefix("-").removeprefix("-"), value


def _settings(text: str, first: str) -> dict[str, str]:
    """Read ``NAME,key=value,...``, or the same as JSON; `first` is the key that may be left out."""
    if text.startswith("{"):
        with suppress(ValueError):
            return {str(name): str(value) for name, value in json.loads(text).items()}
        return {}
    settings = {}
    for index, part in enumerate(text.split(",")):
        name, equals, value = part.partition("=")
        if equals:
            settings[name] = value
        elif index == 0:
            settings[first] = name
    return settings
