"""A guest as the rest of vmdump sees it: blocks of memory, notes, and what follows from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Self

from vmdump.arch import Arch
from vmdump.errors import ExcludedPage, LayoutError, RequestError
from vmdump.formats.elf import ElfClass
from vmdump.formats.layout import ByteOrder
from vmdump.formats.notes import count_cpus
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.blocks import MAX_PAGE_SIZE, MIN_PAGE_SIZE, Block, HasDescriptor
from vmdump.guest.linux.found import FoundVmcoreinfo, Searched
from vmdump.guest.linux.kernel import Kernel, Told
from vmdump.guest.linux.utsname import Utsname
from vmdump.guest.memory import GuestMemory, largest_page
from vmdump.guest.views import view_of
from vmdump.guest.whole import count_pages
from vmdump.units import ADDRESS_LIMIT, counted, is_power_of_two

if TYPE_CHECKING:
    from vmdump.arch.paging import Runs
    from vmdump.guest.linux.page_types.filter import Filtered
    from vmdump.guest.qemu import LiveFacts, QemuFacts
    from vmdump.guest.virtual import VirtualMemory

__all__ = ["Guest"]


class Guest(GuestMemory):
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
    qemu : QemuFacts or None
        What the QEMU of a live guest tells; None of any other.
    live : LiveFacts or None
        How a live guest was found; None of any other, and while it is held.
    told : Told
        The VMCOREINFO that the notes tell, or that was given or found, and whether another is looked for.
    searched : Searched
        All that was found in its memory, once it was looked for.
    changes : bool
        True if the memory may be another one the next time that it is read.
    incomplete : bool
        True for a dump that is marked as lacking pages which it should have.
    dump_level : int
        Which kinds of pages a dump excludes, in makedumpfile's bits; 1 is zeros, of which nothing is lost.
    filtered : Filtered or None
        What was left out of it by types of pages; None where nothing was.
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
    qemu: QemuFacts | None = None
    live: LiveFacts | None = None
    changes = False
    incomplete = False
    dump_level = 1
    filtered: Filtered | None = None
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
        super().__init__(blocks)
        self.arch = arch
        self.byteorder: ByteOrder = byteorder or arch.byteorder
        wide = self.blocks[-1].end > arch.max_end_32
        self.elf_class: ElfClass = 64 if wide else elf_class or arch.elf_class
        told = Told.by_notes(notes if cpus is None else self._with_registers(notes, cpus), self.byteorder)
        self.told = told if vmcoreinfo is None else told.with_text(vmcoreinfo)
        self.searched = Searched()
        self._page_size_asked = page_size
        if not is_power_of_two(self.page_size) or not MIN_PAGE_SIZE <= self.page_size <= MAX_PAGE_SIZE:
            raise LayoutError(f"page size {self.page_size} is not a power of two from 4096 to 65536")
        if count_pages(self.blocks, MAX_PAGE_SIZE) == ADDRESS_LIMIT // MAX_PAGE_SIZE:
            raise LayoutError("its memory fills all 64 bits of addresses: no guest has that")

    def _with_registers(self, notes: bytes, cpus: Sequence[Mapping[str, int]]) -> bytes:
        if count_cpus(notes, self.byteorder):
            raise RequestError("cpus: the notes have registers already", parameter="cpus")
        return self.arch.notes(cpus, self.byteorder) + notes

    def with_vmcoreinfo(self, text: bytes, *, found: FoundVmcoreinfo | None = None) -> Self:
        """Give the same guest with another VMCOREINFO; its memory is shared, not copied.

        Parameters
        ----------
        text : bytes
            ``KEY=value`` lines.
        found : FoundVmcoreinfo, optional
            Where they were found.
        """
        return view_of(self, told=self.told.with_text(text, found))

    def without_search(self) -> Self:
        """Give the same guest, with the VMCOREINFO that it tells and no other."""
        return view_of(self, told=self.told._replace(search=False))

    def telling_progress(self, progress: Callable[[int, int], object] | None) -> Self:
        """Give the same guest, which tells (done, total) of a search for VMCOREINFO that takes long."""
        return view_of(self, told=self.told._replace(progress=progress))

    @property
    def notes(self) -> bytes:
        """ELF notes, in the guest's byte order."""
        return self.told.notes

    @cached_property
    def page_size(self) -> int:
        """Bytes of a page: what was asked for, else what VMCOREINFO tells, else as QEMU has it."""
        asked = self._page_size_asked
        return self._natural_page_size() if asked is None else asked

    def _natural_page_size(self) -> int:
        told = self.told.lines.page_size
        if told in self.arch.page_sizes:
            return told
        return largest_page(self.blocks, self.arch.page_size)

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
    def in_use(self) -> Sequence[os.stat_result]:
        """Files and disks that a live guest needs, its memory apart: nothing may be written to them."""
        return ()

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
    def vmcoreinfo(self) -> Vmcoreinfo:
        """VMCOREINFO that the guest tells; else, unless that is not wanted, what is found in its memory.

        It is looked for when it is first asked for, which may take as long as reading all memory. What
        `notes` and `page_size` say does not change with it.

        Raises
        ------
        SourceError
            The memory cannot be read.
        """
        if self.told.is_whole or not self.told.search:
            return self.told.lines
        from vmdump.guest.linux.find_vmcoreinfo import findings_of  # few guests have to be searched

        found = findings_of(self).chosen
        return self.told.lines if found is None else found.lines

    @property
    def kernel(self) -> Kernel:
        """The guest's Linux kernel, by `vmcoreinfo`."""
        return Kernel(self.vmcoreinfo, self.arch, self.blocks[0].start)

    @property
    def phys_base(self) -> int:
        """Where the kernel's image was moved to, as an unsigned 64-bit number."""
        return self.kernel.phys_base

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
        return self.kernel.to_phys(address)

    @cached_property
    def utsname(self) -> Utsname:
        """The guest's names: from ``init_uts_ns`` in its memory, else those told, else by VMCOREINFO.

        A guest without VMCOREINFO is not known to be Linux; then only the machine is set, unless a dump
        tells more. All of it is what readers take.
        """
        kernel = self.kernel
        names = (kernel.names_in(self.read) if kernel.release else None) or self._names_told(kernel.release)
        return kernel.complete(names, self.elf_class, self.byteorder)

    def _names_told(self, release: bytes) -> Utsname | None:
        """Give the names that a file tells in its own header; None where they are not of this release."""
        return None

    @cached_property
    def virtual(self) -> VirtualMemory:
        """What the guest's page tables map where."""
        # Most dumps ask no page tables.
        from vmdump.arch.paging import AddressSpaces, KernelFacts, ReadTables
        from vmdump.guest.virtual import VirtualMemory

        find = self.arch.address_spaces

        def spaces(read: ReadTables) -> AddressSpaces:
            assert find is not None
            kernel = self.kernel
            return find(KernelFacts(self.cpus, kernel.vmcoreinfo, self.byteorder, kernel.to_phys, read))

        return VirtualMemory(self.blocks, self.arch, None if find is None else spaces)

    def mappings(self, *, as_qemu: bool = False) -> Runs:
        """List what page tables map to memory; see :meth:`vmdump.guest.virtual.VirtualMemory.mappings`."""
        return self.virtual.mappings(as_qemu=as_qemu)

    def translate(self, address: int, *, cpu: int | None = None) -> int:
        """Find the guest-physical address of a virtual one. It need not be memory: devices are mapped, too.

        Parameters
        ----------
        address : int
            Virtual address, from 0 to 2**64 - 1.
        cpu : int, optional
            Only by the page tables of this vCPU, counted from 0. Without it the kernel's own, by
            VMCOREINFO, and those of all vCPUs are tried: for addresses of the upper half, and on s390x for
            all, the kernel's first, else in the order of the vCPUs. What the kernel has mapped without
            tables is before all of them.

        Raises
        ------
        TranslationError
            No page table maps it.
        CapabilityError
            There is no walk for the architecture, or nothing tells where the page tables are.
        SourceError
            They cannot be read.
        """
        return int(self.virtual.runs(address, 1, cpu).physical[0])

    def read_virtual(self, address: int, length: int, *, cpu: int | None = None) -> bytes:
        """Read virtual memory; `cpu` as for :meth:`translate`.

        Raises
        ------
        TranslationError
            Part of ``[address, address + length)`` is not mapped.
        ReadError, ExcludedPage
            Part of it is mapped to what is not in memory, or not in the dump.
        CapabilityError, SourceError
            As for :meth:`translate`.
        """
        if length <= 0:
            return b""
        runs = self.virtual.runs(address, length, cpu)
        places = zip(runs.physical.tolist(), runs.size.tolist(), strict=True)
        return b"".join(self.read(physical, size) for physical, size in places)

    def _excluded_page(self, address: int) -> ExcludedPage:
        def tell() -> str:
            from vmdump.guest.linux.page_types.usage import type_of  # few ask for what was excluded

            # Struct pages that are excluded tell nothing of themselves, or this would not end.
            plain = view_of(self.without_search(), _excluded_page=ExcludedPage.at)
            found = type_of(plain, address)
            return found.label if found.is_told else ""

        return ExcludedPage.at(address, tell)

    @property
    def lost_pages(self) -> int:
        """Pages that a damaged dump does not have any more."""
        return 0

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.arch.name} {self.byteorder}-endian, "
            f"{counted(len(self.blocks), 'block')}, {self.size:#x} bytes, {counted(self.nr_cpus, 'vCPU')}>"
        )
