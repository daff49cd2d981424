"""Find a Linux guest's VMCOREINFO in its memory, where nothing passes it on.

The kernel keeps it twice, each time at the start of a page: as text (vmcoreinfo_data) and as an ELF note
around the text (vmcoreinfo_note); see kernel/vmcore_info.c. Memory may hold stale copies: of a kernel
that was there before kexec, of a nested guest, of this page in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vmdump.errors import FormatError, RequestError
from vmdump.formats.notes import VMCOREINFO_NAME, find_vmcoreinfo
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.sources.base import MAX_PAGE_SIZE, MIN_PAGE_SIZE, Pages, Source

__all__ = ["FoundVmcoreinfo", "check_vmcoreinfo", "search_vmcoreinfo", "vmcoreinfo_texts"]

_CHUNK = 4 << 20
_TEXT_START = b"OSRELEASE="
_NOTE_NAME_OFFSET = 12
"""Bytes from the start of a note to its name."""
_WORD = 4


def check_vmcoreinfo(text: bytes) -> bytes:
    """Check what a user gives for VMCOREINFO.

    Parameters
    ----------
    text : bytes
        ``KEY=value`` lines, with or without zeros behind.

    Returns
    -------
    bytes
        The lines.

    Raises
    ------
    RequestError
        They do not look like VMCOREINFO.
    """
    lines = text.rstrip(b"\0")
    if not _is_vmcoreinfo(lines):
        raise RequestError(
            "vmcoreinfo: these are no VMCOREINFO lines, which begin with OSRELEASE= and tell PAGESIZE",
            parameter="vmcoreinfo",
        )
    return lines


def _is_vmcoreinfo(text: bytes) -> bool:
    if not text.startswith(_TEXT_START) or len(text) > MAX_PAGE_SIZE or b"\0" in text:
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
    """

    address: int
    text: bytes

    def is_there(self, source: Source) -> bool:
        """Tell whether it still is where it was found: after a reboot the new kernel's is."""
        return _text_at(source, self.address) == self.text


def search_vmcoreinfo(
    source: Source, cancelled: Callable[[], bool] = lambda: False
) -> FoundVmcoreinfo | None:
    """Look for VMCOREINFO in all of a guest's memory that is not known to be zero.

    Parameters
    ----------
    source : Source
        The guest; may run.
    cancelled : callable
        Asked after each 4 MiB; ends the search.

    Returns
    -------
    FoundVmcoreinfo or None
        One of which it was checked that the guest's ``init_uts_ns`` is where it says and names the same
        release; where it is not known for sure where that is, the only text there is.

    Raises
    ------
    SourceError
        The memory cannot be read.
    """
    unchecked: dict[bytes, FoundVmcoreinfo] = {}
    for found in vmcoreinfo_texts(source, cancelled):
        if found.text in unchecked:
            continue
        guest = source.with_vmcoreinfo(found.text)
        verdict = _verdict(guest)
        if verdict == "right":
            return found
        if verdict == "unknown":
            unchecked[found.text] = found
    return next(iter(unchecked.values())) if len(unchecked) == 1 else None


def vmcoreinfo_texts(
    source: Source, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[FoundVmcoreinfo]:
    """Give all that looks like VMCOREINFO in a guest's memory, whatever kernel it is of.

    Raises
    ------
    SourceError
        The memory cannot be read.
    """
    for address in _candidates(source, cancelled):
        text = _text_at(source, address)
        if text is not None:
            yield FoundVmcoreinfo(address, text)


def _verdict(guest: Source) -> Literal["right", "wrong", "unknown"]:
    """Tell whether a guest's VMCOREINFO is of the kernel that is in its memory.

    Right if its ``init_uts_ns`` is where it says and names its release; unknown where it is not known for
    sure where that is.
    """
    if guest.utsname_in_memory() is not None:
        return "right"
    symbol = guest.vmcoreinfo.symbol("init_uts_ns")
    checked = symbol is not None and guest.kernel_to_phys(symbol) is not None
    return "wrong" if checked and guest.arch.kernel_to_phys_is_sure else "unknown"


def _candidates(source: Source, cancelled: Callable[[], bool]) -> Iterator[int]:
    """Give the guest-physical addresses of pages that begin as VMCOREINFO does."""
    scratch = np.empty(_CHUNK, np.uint8)
    for block in source.blocks:
        for begin, end in block.memory.extents():
            for offset in range(begin, end, _CHUNK):
                length = min(_CHUNK, end - offset)
                for found in _starts(block.memory.view(offset, length, scratch), block.start + offset):
                    yield block.start + offset + found
                if cancelled():
                    return


def _starts(data: Pages, address: int) -> list[int]:
    """Give the offsets in `data` of whole pages whose first words are those of the text or the note."""
    skip = -address % MIN_PAGE_SIZE
    count = (len(data) - skip) // MIN_PAGE_SIZE
    if count <= 0:
        return []
    words = data[skip : skip + count * MIN_PAGE_SIZE].view("V4").reshape(count, -1)
    name = words[:, _NOTE_NAME_OFFSET // _WORD]
    hits = (words[:, 0] == np.void(_TEXT_START[:_WORD])) | (name == np.void(VMCOREINFO_NAME[:_WORD]))
    return [skip + int(page) * MIN_PAGE_SIZE for page in np.flatnonzero(hits)]


def _text_at(source: Source, address: int) -> bytes | None:
    end = next((block.end for block in source.blocks if block.start <= address < block.end), address)
    raw = source.read(address, min(end - address, MAX_PAGE_SIZE))
    try:
        note = None if raw.startswith(_TEXT_START) else find_vmcoreinfo(raw, source.byteorder)
    except FormatError:
        return None
    text = (note.desc if note else raw).split(b"\0", 1)[0]
    return text if _is_vmcoreinfo(text) else None
