"""A guest as the rest of vmdump sees it: blocks of memory, notes, and what follows from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import Arch, arch_by_uts_machine
from vmdump.errors import CodecError, ExcludedPage, FormatError, LayoutError, ReadError, RequestError
from vmdump.formats.elf import ElfClass
from vmdump.formats.layout import ByteOrder
from vmdump.formats.notes import (
    VMCOREINFO_NAME,
    build_note,
    count_cpus,
    find_vmcoreinfo,
    without_notes,
)
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.blocks import (
    Block,
    BlockList,
    FileRuns,
    Memory,
    Pages,
    check_blocks,
    file_runs,
    find_block,
    find_pieces,
)
from vmdump.guest.linux.utsname import UTS_SIZE, Utsname
from vmdump.guest.virtual import Translating
from vmdump.units import ADDRESS_LIMIT, counted, is_power_of_two

if TYPE_CHECKING:
    from vmdump.guest.linux.find_vmcoreinfo import Findings, FoundVmcoreinfo
    from vmdump.guest.stored import StoredPages

__all__ = [
    "MAX_PAGE_SIZE",
    "MIN_PAGE_SIZE",
    "Block",
    "FileRuns",
    "Guest",
    "HasDescriptor",
    "Memory",
    "Pages",
    "QemuFacts",
    "Searched",
    "Utsname",
    "check_blocks",
    "file_runs",
    "find_block",
]

MIN_PAGE_SIZE = 4096
MAX_PAGE_SIZE = 65536


class HasDescriptor(Protocol):
    """Something with an open file descriptor."""

    @property
    def fd(self) -> int:
        """The descriptor."""


@dataclass(frozen=True)
class QemuFacts:
    """What only the QEMU of a live guest tells, for files that have to be as QEMU writes them.

    Attributes
    ----------
    target : str
        ``x86_64`` of qemu-system-x86_64, and so on.
    machine : str
        QOM type of the machine: ``pc-q35-7.2-machine``.
    notes : bytes
        The guest's notes as QEMU gives them.
    byteorder : {"little", "big"}
        Of these; QEMU may take it from the wrong register.
    """

    target: str
    machine: str
    notes: bytes
    byteorder: ByteOrder


@dataclass
class Searched:
    """What was found in memory: views of a guest share it, since they share the memory.

    Attributes
    ----------
    findings : Findings or None
        None until VMCOREINFO was looked for.
    """

    findings: Findings | None = None


class Guest(Translating):
    """A guest of one moment: its blocks, its notes, and what follows from them. Nothing of it changes.

    Attributes
    ----------
    format : str
        What the guest comes as: the format of a dump, ``raw``, ``buffers``, or what kind of guest it is.
    files : tuple
        Open files that hold its memory, each with a descriptor `fd`; none for memory in buffers.
    fuzzy : bool
        True if the guest may have run while its memory was read.
    unreadable : sequence of (int, int)
        Guest-physical ranges ``[begin, end)`` of which a read has failed so far, ascending. Reading them
        gave zeros.
    excluded_size : int
        Bytes of the blocks that the guest has and a dump of it leaves out; see :meth:`excluded_pages`.
    qemu : QemuFacts or None
        What the QEMU of a live guest tells; None of any other.
    told_vmcoreinfo : Vmcoreinfo
        What the notes tell; empty where they have none.
    search : bool
        VMCOREINFO is looked for in memory where it is not told, when it is first asked for.
    search_progress : callable or None
        Told (done, total) in bytes of memory by a search that takes longer than a second.
    found_vmcoreinfo : FoundVmcoreinfo or None
        Where `told_vmcoreinfo` was found, if it was.
    searched : Searched
        All that was found in its memory, once it was looked for.
    changes : bool
        True if the memory may be another one the next time that it is read.
    incomplete : bool
        True for a dump that is marked as lacking pages which it should have.
    dump_level : int
        Which kinds of pages a dump leaves out, in makedumpfile's bits; 1 is zeros, of which nothing is lost.
    lost_pages : int
        Pages that a damaged dump does not have any more.
    codec : str or None
        Of the pages of a kdump file, where they shrank; empty where that was not tried. None of any other.

    Parameters
    ----------
    blocks : sequence of Block
        Sorted, not overlapping.
    arch : Arch
        The guest's architecture.
    byteorder : {"little", "big"}, optional
        Where it is not the architecture's usual one.
    elf_class : {32, 64}, optional
        At least this class; an address beyond 32 bits makes it 64 anyway.
    page_size : int, optional
        The dump's block size in bytes. Without it VMCOREINFO's PAGESIZE is used, else what QEMU uses for
        the architecture, halved until all blocks are multiples of it.
    notes : bytes
        ELF notes of the guest, in its byte order.
    vmcoreinfo : bytes, optional
        Text of VMCOREINFO; a note of it takes the place of the one in `notes`.
    cpus : sequence of mapping of str to int, optional
        The registers of each vCPU by name, for a guest whose `notes` have none: notes are made of them, see
        :meth:`vmdump.arch.Arch.notes`.

    Raises
    ------
    LayoutError
        The blocks or the page size are wrong.
    FormatError
        A note is longer than the notes.
    RequestError
        A register has no place in the architecture's notes, a value does not fit its register, or `notes`
        have registers already.
    """

    format: str = "guest"
    files: tuple[HasDescriptor, ...] = ()
    fuzzy = False
    unreadable: Sequence[tuple[int, int]] = ()
    excluded_size = 0
    qemu: QemuFacts | None = None
    search = True
    search_progress: Callable[[int, int], object] | None = None
    found_vmcoreinfo: FoundVmcoreinfo | None = None
    changes = False
    incomplete = False
    dump_level = 1
    lost_pages = 0
    codec: str | None = None

    def __init__(
        self,
        blocks: Sequence[Block],
        arch: Arch,
        *,
        byteorder: ByteOrder | None = None,
        elf_class: ElfClass | None = None,
        page_size: int | None = None,
        notes: bytes = b"",
        vmcoreinfo: bytes | None = None,
        cpus: Sequence[Mapping[str, int]] | None = None,
    ) -> None:
        self.blocks = check_blocks(blocks)
        self.arch = arch
        self.byteorder: ByteOrder = byteorder or arch.byteorder
        wide = self.blocks[-1].end > arch.max_end_32
        self.elf_class: ElfClass = 64 if wide else elf_class or arch.elf_class
        self.notes = notes if cpus is None else self._with_registers(notes, cpus)
        self.searched = Searched()
        self._page_size_asked = page_size
        self._set_vmcoreinfo(vmcoreinfo)
        if not is_power_of_two(self.page_size) or not MIN_PAGE_SIZE <= self.page_size <= MAX_PAGE_SIZE:
            raise LayoutError(f"page size {self.page_size} is no power of two from 4096 to 65536")

    def _with_registers(self, notes: bytes, cpus: Sequence[Mapping[str, int]]) -> bytes:
        if count_cpus(notes, self.byteorder):
            raise RequestError("cpus: the notes have registers already", parameter="cpus")
        return self.arch.notes(cpus, self.byteorder) + notes

    def _set_vmcoreinfo(self, text: bytes | None) -> None:
        if text is not None:
            others = without_notes(self.notes, VMCOREINFO_NAME, self.byteorder)
            self.notes = others + build_note(VMCOREINFO_NAME, 0, text, self.byteorder)
        note = find_vmcoreinfo(self.notes, self.byteorder)
        self.told_vmcoreinfo = Vmcoreinfo(note.desc if note else b"")
        asked = self._page_size_asked
        self.page_size = self._natural_page_size() if asked is None else asked

    def with_vmcoreinfo(self, text: bytes, *, found: FoundVmcoreinfo | None = None) -> Self:
        """Give the same guest with another VMCOREINFO; its memory is shared, not copied.

        Parameters
        ----------
        text : bytes
            ``KEY=value`` lines.
        found : FoundVmcoreinfo, optional
            Where they were found.
        """
        other = self._copy()
        other.found_vmcoreinfo = found
        other._set_vmcoreinfo(text)
        return other

    def without_search(self) -> Self:
        """Give the same guest, with the VMCOREINFO that it tells and no other."""
        other = self._copy()
        other.search = False
        return other

    def telling_progress(self, progress: Callable[[int, int], object] | None) -> Self:
        """Give the same guest, which tells of its search for VMCOREINFO; see `search_progress`."""
        other = self._copy()
        other.search_progress = progress
        return other

    def _copy(self) -> Self:
        other = copy.copy(self)
        for derived in ("utsname", "_virtual"):
            other.__dict__.pop(derived, None)
        return other

    @property
    def tells_vmcoreinfo(self) -> bool:
        """Tell whether the notes have a VMCOREINFO that is whole enough to name a release."""
        return "OSRELEASE" in self.told_vmcoreinfo

    @property
    def vmcoreinfo(self) -> Vmcoreinfo:
        """VMCOREINFO that the guest tells; else, if `search` is true, what is found in its memory.

        It is looked for when it is first asked for, which may take as long as reading all memory. What
        `notes` and `page_size` say does not change with it.

        Raises
        ------
        SourceError
            The memory cannot be read.
        """
        if self.tells_vmcoreinfo or not self.search:
            return self.told_vmcoreinfo
        # That module is for sources, and needs this one.
        from vmdump.guest.linux.find_vmcoreinfo import findings_of

        found = findings_of(self).chosen
        return self.told_vmcoreinfo if found is None else found.lines

    def _natural_page_size(self) -> int:
        told = self.told_vmcoreinfo.page_size
        if told in self.arch.page_sizes:
            return told
        size = self.arch.page_size
        if isinstance(self.blocks, BlockList):
            bits = int(np.bitwise_or.reduce(self.blocks.starts) | np.bitwise_or.reduce(self.blocks.sizes))
        else:
            bits = reduce(or_, (block.start | block.size for block in self.blocks))
        while size > MIN_PAGE_SIZE and bits % size:
            size //= 2
        return size

    @property
    def size(self) -> int:
        """Bytes of guest memory."""
        if isinstance(self.blocks, BlockList):
            return self.blocks.size
        return sum(block.size for block in self.blocks)

    def _naming(self) -> AbstractContextManager[None]:
        """Give a context whose errors name the file that the guest was read from, if it was."""
        return nullcontext()

    @cached_property
    def nr_cpus(self) -> int:
        """Number of vCPUs by the register notes; 1 where there are none."""
        with self._naming():
            return count_cpus(self.notes, self.byteorder) or 1

    @cached_property
    def cpus(self) -> tuple[Mapping[str, int], ...]:
        """The registers of each vCPU by name, as unsigned numbers; empty where there are no register notes.

        All registers of all notes of a vCPU are in one mapping: those of NT_PRSTATUS, of the floating-point
        and vector notes, and on x86 those of the QEMU note (``cr0`` to ``cr4``, ``cs_base``, ...). They
        are read when one of them is first asked for.

        Raises
        ------
        FormatError
            There are more vCPUs than any guest has.
        """
        with self._naming():
            return self.arch.cpus(self.notes, self.byteorder)

    @property
    def maker(self) -> str:
        """The program that wrote the dump, or that runs the guest; empty where nothing tells."""
        return ""

    @property
    def compression(self) -> str:
        """Codecs of its pages as a dump's header names them; empty where pages are not packed one by one."""
        return ""

    @property
    def eraseinfo(self) -> bytes:
        """What makedumpfile says that it erased from the memory, as text; empty where it did not."""
        return b""

    @property
    def phys_base(self) -> int:
        """Where the kernel's image was moved to, as an unsigned 64-bit number."""
        return self.arch.phys_base(self.vmcoreinfo, self.blocks[0].start) % ADDRESS_LIMIT

    def kernel_to_phys(self, address: int) -> int | None:
        """Find the guest-physical address of what the guest's Linux maps directly, without page tables.

        Parameters
        ----------
        address : int
            Virtual address of the kernel's image; of any memory, on architectures where all of it is mapped
            in one piece. Nothing tells whether there is memory.

        Returns
        -------
        int or None
            None where it takes page tables to know. VMCOREINFO of another kernel may make it any number.
        """
        return self.arch.kernel_to_phys(self.vmcoreinfo, address, self.blocks[0].start)

    @cached_property
    def utsname(self) -> Utsname:
        """The guest's names: from ``init_uts_ns`` in its memory, else those told, else by VMCOREINFO.

        A guest without VMCOREINFO is not known to be Linux; then only the machine is set, unless a dump
        tells more. All of it is what readers take.
        """
        release = self._os_release
        names = (self.utsname_in_memory() if release else None) or self._names_told(release)
        names = names or Utsname.of_release(release)
        machine, arch = names.machine, self.arch
        if arch.uts_machine:
            meant = arch_by_uts_machine(machine.decode("ascii", "replace"), self.elf_class, self.byteorder)
            machine = machine if meant.machine == arch.machine else arch.uts_machine.encode()
        return names.completed(machine) if names.release else replace(names, machine=machine)

    @property
    def _os_release(self) -> bytes:
        return self.vmcoreinfo.get("OSRELEASE", "").encode("utf-8", "surrogateescape")

    def _names_told(self, release: bytes) -> Utsname | None:
        """Give the names that a file tells in its own header; None where they are not of this release."""
        return None

    def utsname_in_memory(self) -> Utsname | None:
        """Read ``init_uts_ns`` where VMCOREINFO says it is; None if something else is there."""
        virtual = self.vmcoreinfo.symbol("init_uts_ns")
        offset = self.vmcoreinfo.offset("uts_namespace.name")
        if virtual is None or offset is None:
            return None
        address = self.kernel_to_phys(virtual + offset)
        if address is None:
            return None
        try:
            names = Utsname.unpack(self.read(address, UTS_SIZE))
        except (ReadError, FormatError, CodecError):  # not there, or damaged
            return None
        plausible = names is not None and names.is_of(self._os_release) and names.version and names.machine
        return names if plausible else None

    def excluded_pages(self, pfn: int, count: int) -> NDArray[np.bool_] | None:
        """Tell which pages inside the blocks are not in the dump that this guest comes from.

        Their memory gives zeros; :meth:`read` raises ExcludedPage.

        Parameters
        ----------
        pfn, count : int
            The pages, by frame number in units of `page_size`.

        Returns
        -------
        (count,) bool or None
            None where nothing is excluded.
        """
        return None

    def stored_pages(self, pfn: int, count: int) -> StoredPages | None:
        """Give pages inside the blocks as they are stored; None where they are not stored one by one.

        As many as shall be in memory at once; errors as of :meth:`read`.
        """
        return None

    def read(self, address: int, length: int) -> bytes:
        """Read guest-physical memory.

        Raises
        ------
        ReadError
            Part of ``[address, address + length)`` is in no block.
        ExcludedPage
            Part of it was left out of the dump.
        SourceError
            The memory cannot be read.
        """
        if length <= 0:
            return b""
        end = address + length
        with self._naming():
            pieces = list(find_pieces(self.blocks, address, end))
            first = address // self.page_size
            excluded = self.excluded_pages(first, -(-end // self.page_size) - first)
            if excluded is not None and excluded.any():
                raise ExcludedPage.at(max(address, (first + int(excluded.argmax())) * self.page_size))
            parts = []
            for block, low, high in pieces:
                scratch = np.empty(high - low if block.memory.copies else 0, np.uint8)
                parts.append(block.memory.view(low, high - low, scratch).tobytes())
        return b"".join(parts)

    def pieces(self, begin: int, end: int) -> Iterator[tuple[Block, int, int]]:
        """Find the memory of addresses; see :func:`vmdump.guest.blocks.find_pieces`."""
        with self._naming():
            yield from find_pieces(self.blocks, begin, end)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.arch.name} {self.byteorder}-endian, "
            f"{counted(len(self.blocks), 'block')}, {self.size:#x} bytes, {counted(self.nr_cpus, 'vCPU')}>"
        )
