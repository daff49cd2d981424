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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Lock, local
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from vmdump.arch import Arch
from vmdump.errors import CodecError, ExcludedPage, FormatError, ReadError, TranslationError
from vmdump.formats.notes import VMCOREINFO_NAME
from vmdump.guest.blocks import MIN_PAGE_SIZE, Block, HasDescriptor, Memory, Pages
from vmdump.guest.linux.found import (
    TEXT_START,
    Findings,
    FoundVmcoreinfo,
    HasMemory,
    Searched,
    Verdict,
    text_at,
)
from vmdump.guest.linux.kernel import Kernel, Told

if TYPE_CHECKING:
    from vmdump.guest.virtual import VirtualMemory

__all__ = ["Searchable", "find_all", "findings_of", "vmcoreinfo_texts"]

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
_FIRST_NAME = b"CORE"
"""Of the first note in what a capture kernel keeps of the crashed one's: registers, then VMCOREINFO."""
_NOTE_NAME_OFFSET = 12
"""Bytes from the start of a note to its name."""
_WORD = 4
_SECTOR = 512
"""Bytes in which st_blocks counts."""
_IMAGE_SIZE = 64 << 20
"""Bytes behind _stext in which the text of a kernel ends."""
_COUNTED = 64
"""vCPUs whose registers are looked at."""


class Searchable(HasMemory, Protocol):
    """What of a guest a search asks; :class:`vmdump.guest.guest.Guest` tells of each."""

    @property
    def arch(self) -> Arch:
        """The guest's architecture."""

    @property
    def size(self) -> int:
        """Bytes of memory."""

    @property
    def files(self) -> Sequence[HasDescriptor]:
        """Files that hold its memory."""

    @property
    def changes(self) -> bool:
        """Whether the memory may be another one the next time that it is read."""

    @property
    def searched(self) -> Searched:
        """Where findings are kept."""

    @property
    def told(self) -> Told:
        """Whom to tell of progress."""

    @property
    def cpus(self) -> Sequence[Mapping[str, int]]:
        """The registers of each vCPU."""

    @property
    def kernel(self) -> Kernel:
        """Its kernel."""

    @property
    def virtual(self) -> VirtualMemory:
        """What that has mapped."""

    def with_vmcoreinfo(self, text: bytes, *, found: FoundVmcoreinfo | None = None) -> Self:
        """Give the same guest with another VMCOREINFO."""

    def without_search(self) -> Self:
        """Give the same guest with what it tells and no other."""

    def telling_progress(self, progress: Callable[[int, int], object] | None) -> Self:
        """Give the same guest, which tells of its searches."""


def _never() -> bool:
    return False


def findings_of(guest: Searchable, cancelled: Callable[[], bool] = _never, *, anew: bool = False) -> Findings:
    """Give what is found in a guest's memory; it is looked for once, or `anew`."""
    if anew or guest.searched.findings is None:
        guest.searched.findings = find_all(guest, cancelled)
    return guest.searched.findings or Findings()


def find_all(guest: Searchable, cancelled: Callable[[], bool] = _never) -> Findings | None:
    """Look for VMCOREINFO in all of a guest's memory that is not known to be zero.

    All processors do. Of a file, pages that are damaged are passed over.

    Parameters
    ----------
    guest : Guest
        May run. The `progress` of what it tells is told of a search that takes longer than a second.
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
    search = _Search(guest, cancelled)
    for address, text in search.texts():
        if text not in judged:
            if len(judged) == _MAX_FOUND:
                judged.clear()
            view = guest.with_vmcoreinfo(text)
            judged[text] = _verdict(view), _cpus_in(view)
        wrong += judged[text][0] == "wrong"
        if judged[text][0] == "wrong" and wrong > _MAX_WRONG:
            continue
        found.append(FoundVmcoreinfo(address, text, *judged[text]))
        if len(found) == _MAX_FOUND:
            break
    return None if search.cancelled else Findings(found)


def vmcoreinfo_texts(guest: Searchable) -> Iterator[bytes]:
    """Give all that looks like VMCOREINFO in a guest's memory, whatever kernel it is of.

    Raises
    ------
    SourceError
        The memory cannot be read.
    """
    for _, text in _Search(guest, _never).texts():
        yield text


def _verdict(guest: Searchable) -> Verdict:
    """Tell whether a guest's VMCOREINFO is of a kernel that is in its memory."""
    kernel = guest.kernel
    if kernel.names_in(guest.read) is not None:
        return "right"
    symbol = kernel.vmcoreinfo.symbol("init_uts_ns")
    address = None if symbol is None else kernel.to_phys(symbol)
    if address is None or not guest.arch.kernel_to_phys_is_sure:
        return "unknown"
    try:
        guest.read(address, 1)
    except (ExcludedPage, FormatError, CodecError):  # it is excluded, or damaged
        return "unknown"
    except ReadError:
        pass
    return "wrong"


def _cpus_in(guest: Searchable) -> int:
    """Count the vCPUs that are in the kernel of a guest's VMCOREINFO."""
    kernel = guest.kernel
    begin = kernel.vmcoreinfo.symbol("_stext")
    symbol = begin if begin is not None else kernel.vmcoreinfo.symbol("init_uts_ns")
    try:
        if symbol is not None and guest.virtual.knows_page_tables:
            physical = kernel.to_phys(symbol)
            return 0 if physical is None else guest.virtual.count_mapping(symbol, physical, most=_COUNTED)
        # Other architectures' notes do not tell the root of page tables.
        counters = (cpu.get("pc", cpu.get("rip")) for cpu in guest.cpus[:_COUNTED])
        return sum(begin is not None and at is not None and 0 <= at - begin < _IMAGE_SIZE for at in counters)
    except (FormatError, CodecError, TranslationError):  # damaged notes or page tables
        return 0


class _Search:
    """One search: all chunks of a guest's memory, and where in them pages begin as VMCOREINFO does."""

    def __init__(self, guest: Searchable, cancelled: Callable[[], bool]) -> None:
        self._guest = guest
        self._ask = cancelled
        self.cancelled = False
        self._threads = len(os.sched_getaffinity(0)) if guest.size > _CHUNK else 1
        self._own = local()
        self._counting = Lock()
        self._failed = 0
        held = sum(os.fstat(file.fd).st_blocks * _SECTOR for file in guest.files)
        self._left = _MAX_RATIO * held + _ALWAYS if held and not guest.changes else None

    def texts(self) -> Iterator[tuple[int, bytes]]:
        """Give the guest-physical addresses of texts of VMCOREINFO, ascending, and the texts."""
        for address in islice(self._candidates(), _MAX_PAGES):
            text = text_at(self._guest, address)
            if text is not None:
                yield address, text

    def _candidates(self) -> Iterator[int]:
        progress, began, total = self._guest.told.progress, time.monotonic(), self._guest.size
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
        for block in self._guest.blocks:
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
            self._own.scratch = np.empty(min(_CHUNK, self._guest.size), np.uint8)
        try:
            data = self._view(block.memory, begin, end - begin)
        except (FormatError, CodecError):
            # What is whole beside a damaged page is looked through, unless most is damaged.
            half = begin + (end - begin) // 2 // MIN_PAGE_SIZE * MIN_PAGE_SIZE
            with self._counting:
                self._failed += 1
            if half == begin or self._failed > _MAX_FAILED:
                return []
            return self._look((block, begin, half, 0)) + self._look((block, half, end, 0))
        if self._left is not None and data.any():
            with self._counting:
                self._left -= len(data)
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
        np.frombuffer(start[:_WORD], np.uint32)[0] for start in (TEXT_START, VMCOREINFO_NAME, _FIRST_NAME)
    )
    hits = (words[:, 0] == text) | np.isin(words[:, _NOTE_NAME_OFFSET // _WORD], notes)
    return [skip + int(page) * MIN_PAGE_SIZE for page in np.flatnonzero(hits)]
