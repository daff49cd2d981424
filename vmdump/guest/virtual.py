"""Virtual memory of a guest: addresses through its page tables, and the list of all it maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import Arch
from vmdump.arch.paging import AddressSpace, AddressSpaces, Runs, walk
from vmdump.arch.paging.tables import MAX_TABLES, ReadTables, Words
from vmdump.errors import CapabilityError, ReadError, TranslationError
from vmdump.guest.blocks import Block, Pages, block_bounds, find_pieces, read_into
from vmdump.units import ADDRESS_LIMIT

__all__ = ["VirtualMemory"]

_PAGE = 4096
_PAGES_PER_TABLE = 8
"""Of a guest whose memory is an eighth page tables; Linux has one of 100 pages."""
_IMAGE = 1 << 39
_SMALL_GUEST = 4096
"""Tables that any guest may have: tables are shared more often the less memory there is."""


class VirtualMemory:
    """What a guest has mapped where.

    Parameters
    ----------
    blocks : sequence of Block
        Its memory.
    arch : Arch
        Its architecture.
    find : callable or None
        Finds the page tables that are known, given what reads them; None for an architecture without a walk.
    """

    def __init__(
        self, blocks: Sequence[Block], arch: Arch, find: Callable[[ReadTables], AddressSpaces] | None
    ) -> None:
        self._blocks = blocks
        self._arch = arch
        self._starts, sizes = block_bounds(blocks)
        self._size = sum(sizes.tolist())
        # The last address and not the one behind it: that does not fit where a block ends at 2**64.
        self._lasts = self._starts + (sizes - np.uint64(1))
        self._spaces = None if find is None else find(self._read_tables)

    def mappings(self, *, as_qemu: bool = False) -> Runs:
        """List the virtual memory that all known page tables map to memory of this guest.

        The page tables are those of the vCPUs, by their control registers; without these, the kernel's, by
        VMCOREINFO. What the kernel has without tables is listed as well. The list has the order, and on
        x86_64 the addresses, that QEMU gives it: ascending in guest-physical memory, and addresses of the
        lower half with their highest 16 (7) bits set.

        Parameters
        ----------
        as_qemu : bool
            With QEMU's mistakes: pages whose entries have bits 52 to 62 are missing, and a mapping that grows
            downwards, by the page tables of another vCPU, shows the wrong memory.

        Returns
        -------
        Runs
            Where paging is off on all vCPUs, the blocks at their own addresses.

        Raises
        ------
        CapabilityError
            There is no walk for the architecture, or nothing tells where the page tables are.
        TranslationError
            The page tables stand for more than can be listed.
        SourceError
            They cannot be read.
        """
        known = self._known("paging")
        active = [space for space in known.cpus if space is not None]
        if known.cpus and not active:
            return Runs.identity(*block_bounds(self._blocks))
        direct = [known.direct.clipped(block.start, block.end) for block in self._blocks]
        if not active and known.kernel is not None:
            active = [known.kernel]
        if as_qemu:
            from vmdump.arch.paging.qemu import mapped_runs
        else:
            from vmdump.arch.paging.mappings import mapped_runs
        pages = self._size // _PAGE
        runs = mapped_runs(
            active,
            self._read_tables,
            self._is_memory,
            max_tables=min(pages // _PAGES_PER_TABLE + _SMALL_GUEST, MAX_TABLES),
        )
        if not known.direct.size.size:
            return runs
        both = Runs.joined((*direct, runs))
        return both.take(np.argsort(both.physical, kind="stable"))

    def kernel_half(self) -> Runs:
        """List all that the kernel's own page tables map in the upper half, memory of this guest or not.

        Returns
        -------
        Runs
            Virtual addresses without the bits that are not translated; without the last 512 GiB, where x86
            has the kernel's image.

        Raises
        ------
        CapabilityError
            There is no walk for the architecture, or nothing tells where the page tables are.
        TranslationError
            The page tables stand for more than a guest of this size has.
        SourceError
            They cannot be read.
        """
        space = self._known("page tables").kernel
        if space is None:
            raise CapabilityError("page tables: VMCOREINFO does not tell where the kernel's are")
        end = 1 << space.format.bits
        # Of 2 MiB each; it takes as many again for what is not mapped directly.
        tables = self._size // (1 << 20) + _SMALL_GUEST
        return walk(
            space, self._read_tables, begin=end // 2, end=end - _IMAGE, max_tables=min(tables, MAX_TABLES)
        )

    def kernel_runs(self, address: int, length: int) -> Runs:
        """Find where virtual memory of the kernel is, by what it has mapped itself.

        Registers of vCPUs are asked only where VMCOREINFO does not tell the kernel's own page tables.

        Parameters
        ----------
        address, length : int
            ``[address, address + length)``, up to 2**64. What of it is not mapped is left out.

        Returns
        -------
        Runs
            Ascending, as few as possible; memory of this guest or not.

        Raises
        ------
        CapabilityError
            There is no walk for the architecture, or nothing tells where the page tables are.
        TranslationError
            The page tables stand for more than any guest needs.
        SourceError
            They cannot be read.
        """
        known = self._known("page tables")
        if length <= 0:
            return Runs.joined(())
        space = known.kernel
        if space is None and not known.direct.size.size:
            space = next((space for space in known.cpus if space is not None), None)
            if space is None:
                return _as_physical(address, length)
        parts = [_cut(known.direct, address, length)]
        begin, last = (None if space is None else space.offset(at) for at in (address, address + length - 1))
        if space is not None and begin is not None and last is not None:
            found = _cut(walk(space, self._read_tables, begin=begin, end=last + 1), begin, length)
            parts.append(found._replace(virtual=found.virtual + np.uint64(address - begin)))
        runs = Runs.joined(parts)
        return runs.take(np.argsort(runs.virtual, kind="stable")).compressed()

    def _known(self, what: str) -> AddressSpaces:
        spaces, arch = self._spaces, self._arch
        if spaces is None:
            raise CapabilityError(f"{what}: no page-table walk for {arch.name} in this version")
        if spaces.kernel is None and not spaces.cpus and not spaces.direct.size.size:
            raise self._without_tables(what)
        return spaces

    def _without_tables(self, what: str) -> CapabilityError:
        return CapabilityError(
            f"{what}: neither registers of vCPUs nor VMCOREINFO tell where the page tables of this "
            f"{self._arch.name} guest are; --vmcoreinfo FILE gives the latter"
        )

    def runs(self, address: int, length: int, cpu: int | None) -> Runs:
        """Find where virtual memory is.

        Parameters
        ----------
        address, length : int
            ``[address, address + length)``.
        cpu : int or None
            By whose page tables; see :meth:`vmdump.guest.guest.Guest.translate`.

        Returns
        -------
        Runs
            Ascending, without gaps, exactly this memory.

        Raises
        ------
        CapabilityError
            As for :meth:`mappings`; where only page tables could tell, and it is not known where they are.
        TranslationError
            Part of it is not mapped.
        """
        best = address
        for space in self._candidates(address, cpu):
            if not 0 <= address <= ADDRESS_LIMIT - length:
                break
            if space is None:
                return _as_physical(address, length)
            if isinstance(space, Runs):
                begin, runs = address, _cut(space, address, length)
            else:
                offset = space.offset(address)
                if offset is None or space.offset(address + length - 1) is None:
                    continue
                found = walk(space, self._read_tables, begin=offset, end=offset + length)
                begin, runs = offset, space.prefixed(_cut(found, offset, length))
            covered = _covered(runs, begin)
            if covered == length:
                return runs._replace(virtual=runs.virtual + np.uint64(address - begin))
            best = max(best, address + covered)
        if best == address and self._spaces is not None and not (self._spaces.kernel or self._spaces.cpus):
            raise self._without_tables("virtual address")
        raise TranslationError(f"no page table maps the virtual address {best:#x}", address=best)

    def _candidates(self, address: int, cpu: int | None) -> Sequence[AddressSpace | Runs | None]:
        known = self._known("virtual address")
        if cpu is not None:
            if not 0 <= cpu < len(known.cpus):
                raise CapabilityError(
                    f"virtual address: the control registers of vCPU {cpu} are not known, "
                    f"those of {len(known.cpus)} are"
                )
            return [known.cpus[cpu]]
        # A vCPU that was not started yet says nothing about a guest that runs on others.
        spaces: list[AddressSpace | Runs] = [s for s in dict.fromkeys(known.cpus) if s is not None]
        if known.kernel is not None:
            # A vCPU in user mode may have tables without the kernel; the kernel's own have no processes.
            spaces.insert(0 if known.kernel_first or address >> 63 else len(spaces), known.kernel)
        if known.direct.size.size:
            spaces.insert(0, known.direct)
        return spaces or [None]

    @property
    def knows_page_tables(self) -> bool:
        """Tell whether registers of vCPUs say which page tables are in use."""
        return self._spaces is not None and any(space is not None for space in self._spaces.cpus)

    def count_mapping(self, address: int, physical: int, *, most: int) -> int:
        """Count the vCPUs by whose page tables a virtual address is at a guest-physical one.

        Parameters
        ----------
        address, physical : int
            The virtual and the guest-physical address.
        most : int
            vCPUs that are looked at.

        Raises
        ------
        SourceError
            Page tables cannot be read.
        """
        spaces = self._spaces.cpus[:most] if self._spaces is not None else ()
        return sum(space is not None and self._maps(space, address, physical) for space in spaces)

    def _maps(self, space: AddressSpace, address: int, physical: int) -> bool:
        offset = space.offset(address)
        if offset is None:
            return False
        # Under page-table isolation an x86 processor in user mode has tables without the kernel, in the
        # second page of a pair.
        for root in sorted({space.root & ~_PAGE, space.root}):
            runs = walk(space._replace(root=root), self._read_tables, begin=offset, end=offset + 1)
            if runs.size.size and int(runs.physical[0]) + offset - int(runs.virtual[0]) == physical:
                return True
        return False

    def _is_memory(self, addresses: Words) -> NDArray[np.bool_]:
        index = np.searchsorted(self._starts, addresses, side="right").astype(np.intp) - 1
        inside: NDArray[np.bool_] = (index >= 0) & (addresses <= self._lasts[index])
        return inside

    def _read_tables(self, addresses: Words, size: int) -> NDArray[np.uint8]:
        """Read tables, those that lie side by side at once; what is not in memory is zero: nothing mapped."""
        unique, inverse = np.unique(addresses, return_inverse=True)
        tables = np.zeros((unique.size, size), np.uint8)
        rows = np.flatnonzero(self._is_memory(unique) & (unique <= np.uint64(ADDRESS_LIMIT - size)))
        begins = unique[rows]
        breaks = np.flatnonzero((begins[1:] - begins[:-1] != size) | (rows[1:] - rows[:-1] != 1)) + 1
        for run in np.split(rows, breaks) if rows.size else ():
            self._read_zeroed(int(unique[run[0]]), tables[run[0] : run[-1] + 1].reshape(-1))
        return tables[inverse]

    def _read_zeroed(self, address: int, out: Pages) -> None:
        """Fill `out` up to where memory ends."""
        done = 0
        with suppress(ReadError):
            for block, low, high in find_pieces(self._blocks, address, address + out.size):
                read_into(block.memory, low, out[done : done + high - low])
                done += high - low


def _as_physical(address: int, length: int) -> Runs:
    """Give the memory that a vCPU without paging has at an address."""
    return Runs(*(np.array([value], np.uint64) for value in (address, address, length, _PAGE)))


def _cut(runs: Runs, begin: int, length: int) -> Runs:
    """Give what of the runs is inside ``[begin, begin + length)``, ascending."""
    low, last = np.uint64(begin), np.uint64(begin + length - 1)
    # The last byte and not the end: 2**64 does not fit into 64 bits.
    inside = runs.take((runs.virtual <= last) & (runs.virtual + (runs.size - np.uint64(1)) >= low))
    inside = inside.take(np.argsort(inside.virtual, kind="stable"))
    before = np.maximum(inside.virtual, low) - inside.virtual
    behind = np.minimum(inside.virtual + (inside.size - np.uint64(1)), last) + np.uint64(1)
    return Runs(
        inside.virtual + before, inside.physical + before, behind - inside.virtual - before, inside.page
    )


def _covered(runs: Runs, begin: int) -> int:
    """Count the bytes from `begin` on that are mapped without a gap."""
    if runs.size.size == 0 or int(runs.virtual[0]) != begin:
        return 0
    gaps = np.flatnonzero(runs.virtual[1:] != runs.virtual[:-1] + runs.size[:-1])
    return int(runs.size[: gaps[0] + 1 if gaps.size else None].sum())
