"""Find a Linux guest's VMCOREINFO in its memory, where nothing passes it on.

The kernel keeps it twice, each time at the start of a page: as text (vmcoreinfo_data) and as an ELF note
around the text (vmcoreinfo_note); see kernel/vmcore_info.c. A kernel that crashes adds CRASHTIME= to the
note, and to a copy of the text. Memory may hold those of several kernels: of one that crashed, and of its
capture kernel, which also keeps a copy of the other's behind the registers; stale ones, of a kernel that was
there before a reboot; of a nested guest; of this page in a file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from threading import local
from typing import Literal

import numpy as np

from vmdump.errors import CodecError, ExcludedPage, FormatError, ReadError, RequestError, TranslationError
from vmdump.formats.notes import VMCOREINFO_NAME, find_vmcoreinfo
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.guest import MAX_PAGE_SIZE, MIN_PAGE_SIZE, Block, Guest, Memory, Pages, find_block

__all__ = [
    "FOUND",
    "Findings",
    "FoundVmcoreinfo",
    "find_all",
    "findings_of",
    "is_vmcoreinfo",
    "vmcoreinfo_texts",
]

_CHUNK = 4 << 20
_AHEAD = 8
"""Chunks for each thread between two looks at what they found: 5 ms of work, for 10 us of waiting."""
_SILENT = 1.0
"""Seconds after which somebody who waits wants to see progress."""
_MAX_PAGES = 4096
"""Pages that begin as VMCOREINFO does: a guest that is full of them takes 10 s, no more."""
_MAX_FOUND = 64
_MAX_WRONG = 32
"""Of these that are told: files in the page cache may have more, in front of the guest's own."""
_MAX_FAILED = 256
"""Reads of less than a chunk that may fail, looking for what is whole beside damaged pages."""
_MAX_RATIO = 64
"""Bytes of memory for each byte of a dump's files, zeros not counted: one of 60 MiB can have 170 GiB of pages
that are one and the same."""
_ALWAYS = 1 << 30
"""Bytes that are looked through whatever the size of the files."""
_TEXT_START = b"OSRELEASE="
_FIRST_NAME = b"CORE"
"""Of the first note in what a capture kernel keeps of the crashed one's: registers, then VMCOREINFO."""
_NOTE_NAME_OFFSET = 12
"""Bytes from the start of a note to its name."""
_WORD = 4
FOUND = "found:"
"""In front of the number of one that was found, as a user names it."""
_SECTOR = 512
"""Bytes in which st_blocks counts."""
_SHOWN = 8
_IMAGE_SIZE = 64 << 20
"""Bytes behind _stext in which the text of a kernel ends."""
_COUNTED = 64
"""vCPUs whose registers are looked at."""

Verdict = Literal["right", "unknown", "wrong"]


def _never() -> bool:
    return False


def is_vmcoreinfo(text: bytes) -> bool:
    """Tell whether a text looks like VMCOREINFO."""
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

    def is_there(self, source: Guest) -> bool:
        """Tell whether it still is where it was found: after a reboot the new kernel's is."""
        return _text_at(source, self.address) == self.text


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
            There is none.
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


def findings_of(source: Guest, cancelled: Callable[[], bool] = _never, *, anew: bool = False) -> Findings:
    """Give what is found in a guest's memory; it is looked for once, or `anew`."""
    if anew or source.searched.findings is None:
        source.searched.findings = find_all(source, cancelled)
    return source.searched.findings or Findings()


def find_all(source: Guest, cancelled: Callable[[], bool] = _never) -> Findings | None:
    """Look for VMCOREINFO in all of a guest's memory that is not known to be zero.

    All processors do. Of a file, pages that are damaged are passed over.

    Parameters
    ----------
    source : Guest
        The guest; may run. Its `search_progress` is told (done, total) in bytes, if it takes longer than a
        second.
    cancelled : callable
        Asked after each 4 MiB; ends the search.

    Returns
    -------
    Findings or None
        None if the search was cancelled.

    Raises
    ------
    SourceError
        The memory cannot be read.
    """
    found: list[FoundVmcoreinfo] = []
    judged: dict[bytes, tuple[Verdict, int]] = {}
    wrong = 0
    search = _Search(source, cancelled)
    for address, text in search.texts():
        if text not in judged:
            if len(judged) == _MAX_FOUND:
                judged.clear()
            guest = source.with_vmcoreinfo(text)
            judged[text] = _verdict(guest), _cpus_in(guest)
        wrong += judged[text][0] == "wrong"
        if judged[text][0] == "wrong" and wrong > _MAX_WRONG:
            continue
        found.append(FoundVmcoreinfo(address, text, *judged[text]))
        if len(found) == _MAX_FOUND:
            break
    return None if search.cancelled else Findings(found)


def vmcoreinfo_texts(source: Guest) -> Iterator[bytes]:
    """Give all that looks like VMCOREINFO in a guest's memory, whatever kernel it is of.

    Raises
    ------
    SourceError
        The memory cannot be read.
    """
    for _, text in _Search(source, _never).texts():
        yield text


def _verdict(guest: Guest) -> Verdict:
    """Tell whether a guest's VMCOREINFO is of a kernel that is in its memory."""
    if guest.utsname_in_memory() is not None:
        return "right"
    symbol = guest.vmcoreinfo.symbol("init_uts_ns")
    address = None if symbol is None else guest.kernel_to_phys(symbol)
    if address is None or not guest.arch.kernel_to_phys_is_sure:
        return "unknown"
    try:
        guest.read(address, 1)
    except (ExcludedPage, FormatError, CodecError):  # it was left out, or is damaged
        return "unknown"
    except ReadError:
        pass
    return "wrong"


def _cpus_in(guest: Guest) -> int:
    """Count the vCPUs that are in the kernel of a guest's VMCOREINFO."""
    begin = guest.vmcoreinfo.symbol("_stext")
    symbol = begin if begin is not None else guest.vmcoreinfo.symbol("init_uts_ns")
    try:
        if symbol is not None and guest.knows_page_tables:
            physical = guest.kernel_to_phys(symbol)
            return 0 if physical is None else guest.count_mapping(symbol, physical, most=_COUNTED)
        # Other architectures' notes do not tell the root of page tables.
        counters = (cpu.get("pc", cpu.get("rip")) for cpu in guest.cpus[:_COUNTED])
        return sum(begin is not None and at is not None and 0 <= at - begin < _IMAGE_SIZE for at in counters)
    except (FormatError, CodecError, TranslationError):  # damaged notes or page tables
        return 0


class _Search:
    """One search: all chunks of a guest's memory, and where in them pages begin as VMCOREINFO does."""

    def __init__(self, source: Guest, cancelled: Callable[[], bool]) -> None:
        self._source = source
        self._ask = cancelled
        self.cancelled = False
        self._threads = len(os.sched_getaffinity(0)) if source.size > _CHUNK else 1
        self._own = local()
        self._failed = 0
        held = sum(os.fstat(file.fd).st_blocks * _SECTOR for file in source.files)
        self._left = _MAX_RATIO * held + _ALWAYS if held and not source.changes else None

    def texts(self) -> Iterator[tuple[int, bytes]]:
        """Give the guest-physical addresses of texts of VMCOREINFO, ascending, and the texts."""
        for address in islice(self._candidates(), _MAX_PAGES):
            text = _text_at(self._source, address)
            if text is not None:
                yield address, text

    def _candidates(self) -> Iterator[int]:
        progress, began, total = self._source.search_progress, time.monotonic(), self._source.size
        chunks = self._chunks()
        with ThreadPoolExecutor(self._threads, "vmdump-search") as pool:
            while some := list(islice(chunks, self._threads * _AHEAD)):
                # Small guests are looked through before a thread is there.
                found = (pool.map if self._threads > 1 else map)(self._look, some)
                for (_, _, _, done), hits in zip(some, found, strict=True):
                    yield from hits
                    self.cancelled = self._ask()
                    if self.cancelled:
                        pool.shutdown(cancel_futures=True)
                        return
                    if self._left is not None and self._left < 0:
                        pool.shutdown(cancel_futures=True)
                        return
                    if progress is not None and time.monotonic() - began > _SILENT:
                        progress(done, total)

    def _chunks(self) -> Iterator[tuple[Block, int, int, int]]:
        """Give the memory that may not be zero: a block, bytes of it, and the guest's up to there."""
        before = 0
        for block in self._source.blocks:
            begin = end = 0
            for low, high in block.memory.extents():
                if high - begin > _CHUNK or end == 0:
                    yield from self._cut(block, begin, end, before)
                    begin = low
                end = high
            yield from self._cut(block, begin, end, before)
            before += block.size

    @staticmethod
    def _cut(block: Block, begin: int, end: int, before: int) -> Iterator[tuple[Block, int, int, int]]:
        for low in range(begin, end, _CHUNK):
            high = min(low + _CHUNK, end)
            yield block, low, high, before + high

    def _look(self, chunk: tuple[Block, int, int, int]) -> list[int]:
        block, begin, end, _ = chunk
        if not hasattr(self._own, "scratch"):
            self._own.scratch = np.empty(min(_CHUNK, self._source.size), np.uint8)
        try:
            data = self._view(block.memory, begin, end - begin)
        except (FormatError, CodecError):
            # What is whole beside a damaged page is looked through, unless most is damaged.
            half = begin + (end - begin) // 2 // MIN_PAGE_SIZE * MIN_PAGE_SIZE
            self._failed += 1
            if half == begin or self._failed > _MAX_FAILED:
                return []
            return self._look((block, begin, half, 0)) + self._look((block, half, end, 0))
        if self._left is not None:
            self._left -= len(data) if data.any() else 0
        address = block.start + begin
        return [address + offset for offset in _starts(data, address)]

    def _view(self, memory: Memory, begin: int, length: int) -> Pages:
        """Read memory; what is known to be zero is not read, and where damage is told by pages, they are."""
        known, whole = getattr(memory, "is_zero", None), getattr(memory, "view_whole", None)
        try:
            if known is not None and known(begin, length):
                return np.empty(0, np.uint8)
            return memory.view(begin, length, self._own.scratch)
        except (FormatError, CodecError):
            if whole is None:
                raise
            found: Pages = whole(begin, length, self._own.scratch)
            return found


def _starts(data: Pages, address: int) -> list[int]:
    """Give the offsets in `data` of whole pages whose first words are those of the text or the note."""
    skip = -address % MIN_PAGE_SIZE
    count = (len(data) - skip) // MIN_PAGE_SIZE
    if count <= 0:
        return []
    words = data[skip : skip + count * MIN_PAGE_SIZE].view(np.uint32).reshape(count, -1)
    text, *notes = (
        np.frombuffer(start[:_WORD], np.uint32)[0] for start in (_TEXT_START, VMCOREINFO_NAME, _FIRST_NAME)
    )
    hits = (words[:, 0] == text) | np.isin(words[:, _NOTE_NAME_OFFSET // _WORD], notes)
    return [skip + int(page) * MIN_PAGE_SIZE for page in np.flatnonzero(hits)]


def _text_at(source: Guest, address: int) -> bytes | None:
    end = source.blocks[find_block(source.blocks, address)].end
    try:
        raw = _read_up_to(source, address, end)
        note = None if raw.startswith(_TEXT_START) else find_vmcoreinfo(raw, source.byteorder)
    except (FormatError, CodecError, ReadError):
        return None
    text = (note.desc if note else raw).split(b"\0", 1)[0]
    return text if is_vmcoreinfo(text) else None


def _read_up_to(source: Guest, address: int, end: int) -> bytes:
    """Read as much as a text and its note can have; the first pages only, if more cannot be read."""
    length = min(end - address, MAX_PAGE_SIZE)
    while length > MIN_PAGE_SIZE:
        try:
            return source.read(address, length)
        except (FormatError, CodecError, ReadError):
            length //= 2
    return source.read(address, length)
