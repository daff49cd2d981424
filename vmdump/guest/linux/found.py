"""VMCOREINFO that was found in a guest's memory, and which of several a reader takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from vmdump.errors import CodecError, FormatError, ReadError, RequestError
from vmdump.formats.layout import ByteOrder
from vmdump.formats.notes import find_vmcoreinfo
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.blocks import MAX_PAGE_SIZE, MIN_PAGE_SIZE, Block, find_block

__all__ = [
    "FOUND",
    "TEXT_START",
    "Findings",
    "FoundVmcoreinfo",
    "HasMemory",
    "Searched",
    "Verdict",
    "is_vmcoreinfo",
    "text_at",
]

TEXT_START = b"OSRELEASE="
"""The first bytes of every VMCOREINFO."""
FOUND = "found:"
"""In front of the number of one that was found, as a user names it."""
_SHOWN = 8

Verdict = Literal["right", "unknown", "wrong"]


class HasMemory(Protocol):
    """What of a guest it takes to read its memory; :class:`vmdump.guest.guest.Guest` tells of each."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The guest's memory."""

    @property
    def byteorder(self) -> ByteOrder:
        """The guest's."""

    def read(self, address: int, length: int) -> bytes:
        """Read guest-physical memory."""


def is_vmcoreinfo(text: bytes) -> bool:
    """Tell whether a text looks like VMCOREINFO."""
    if not text.startswith(TEXT_START) or len(text) > MAX_PAGE_SIZE or b"\0" in text:
        return False
    page_size = Vmcoreinfo(text).page_size
    return page_size is not None and MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE


@dataclass(frozen=True)
class FoundVmcoreinfo:
    """VMCOREINFO that was found in memory.

    Attributes
    ----------
    address : int
        Guest-physical address of the page that begins with it.
    text : bytes
        Its lines.
    verdict : {"right", "unknown", "wrong"}
        Whether it is of a kernel that is in memory: right if its ``init_uts_ns`` is where it says and names
        its release, unknown where it is not known for sure where that is.
    cpus : int
        vCPUs that are in this kernel, by their page tables where registers tell them.
    """

    address: int
    text: bytes
    verdict: Verdict = "unknown"
    cpus: int = 0

    @cached_property
    def lines(self) -> Vmcoreinfo:
        """The text by its keys."""
        return Vmcoreinfo(self.text)

    @property
    def crash_time(self) -> int | None:
        """Seconds since 1970 at which this kernel crashed; None if it did not."""
        told = self.lines.get("CRASHTIME")
        return None if told is None else int(told) if told.isascii() and told.isdigit() else 0

    def is_there(self, guest: HasMemory) -> bool:
        """Tell whether it still is where it was found: after a reboot the new kernel's is."""
        return text_at(guest, self.address) == self.text


class Findings(tuple[FoundVmcoreinfo, ...]):
    """All that was found, ascending; numbers that a user sees count from 1."""

    __slots__ = ()

    @property
    def chosen(self) -> FoundVmcoreinfo | None:
        """The one that readers want: of the kernel that crashed last, else of that in which the vCPUs are.

        One that is right comes before one of which it is not known. Of several of these that nothing else
        tells apart none is chosen; of right ones the first.
        """
        possible = [found for found in self if found.verdict != "wrong"]
        if not possible:
            return None
        best = max(map(_rank, possible))
        equal = [found for found in possible if _rank(found) == best]
        alone = len({found.text for found in equal}) == 1
        return equal[0] if alone or equal[0].verdict == "right" else None

    def number(self, number: int) -> FoundVmcoreinfo:
        """Give the one of a number.

        Raises
        ------
        RequestError
            Nothing of that number was found.
        """
        if not 1 <= number <= len(self):
            there = ", ".join(
                f"{index} at {found.address:#x}" for index, found in enumerate(self, 1) if index <= _SHOWN
            )
            raise RequestError(
                f"vmcoreinfo: no {FOUND}{number}; the guest's memory has {len(self)}"
                + (f": {there}" if there else ""),
                parameter="vmcoreinfo",
            )
        return self[number - 1]


def _rank(found: FoundVmcoreinfo) -> tuple[bool, int, int]:
    crashed = found.crash_time
    return found.verdict == "right", -1 if crashed is None else crashed, found.cpus


@dataclass
class Searched:
    """What was found in memory: views of a guest share it, since they share the memory.

    Attributes
    ----------
    findings : Findings or None
        None until VMCOREINFO was looked for.
    """

    findings: Findings | None = None


def text_at(guest: HasMemory, address: int) -> bytes | None:
    """Give the text of the VMCOREINFO with which a page begins; None where it begins with something else."""
    end = guest.blocks[find_block(guest.blocks, address)].end
    try:
        raw = _read_up_to(guest, address, end)
        note = None if raw.startswith(TEXT_START) else find_vmcoreinfo(raw, guest.byteorder)
    except (FormatError, CodecError, ReadError):
        return None
    text = (note.desc if note else raw).split(b"\0", 1)[0]
    return text if is_vmcoreinfo(text) else None


def _read_up_to(guest: HasMemory, address: int, end: int) -> bytes:
    """Read as much as a text and its note can have; the first pages only, if more cannot be read."""
    length = min(end - address, MAX_PAGE_SIZE)
    while length > MIN_PAGE_SIZE:
        try:
            return guest.read(address, length)
        except (FormatError, CodecError, ReadError):
            length //= 2
    return guest.read(address, length)
