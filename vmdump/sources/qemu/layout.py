"""Where a guest's memory is: QEMU's own list of blocks with its notes, and their place in its process."""

from __future__ import annotations

import os
from collections.abc import Callable

from vmdump.errors import LayoutError, QmpError, SourceError
from vmdump.guest.blocks import Block, Memory
from vmdump.guest.files import FileMemory, GuestFile
from vmdump.sources.process.memory import (
    JoinedMemory,
    PrivateMemory,
    ProcessMemory,
    UnreadablePages,
    WatchedMemory,
)
from vmdump.sources.process.process import Mapping, Process, covering, merged
from vmdump.sources.qemu.way import ELSEWHERE, Way

__all__ = ["GuestLayout"]

_MAX_BLOCKS = 1 << 17
"""2 KiB of this process each; QEMU's own tables of memory slots end at 32764."""


class GuestLayout:
    """A guest's memory as it is laid out at one moment.

    Parameters
    ----------
    way : Way
        To the guest.
    process : Process
        Its QEMU.
    target : str
        The architecture, as QEMU names it.
    private : callable
        Opens the process's memory, where not all of the guest's is in files.
    cancelled : callable
        Asked while waiting.

    Attributes
    ----------
    headers : ElfHeaders
        QEMU's, or what they would be if it could dump this architecture.
    blocks : list of Block
        The guest's memory.
    files : list of GuestFile
        What of it is in files.
    unreadable : UnreadablePages
        Pages that the host could not read so far.

    Raises
    ------
    QmpError, LayoutError, FormatError
        QEMU cannot tell the layout.
    SourceError
        The process does not hold the guest's memory.
    AccessDenied
        This process may not read it.
    """

    def __init__(
        self,
        way: Way,
        process: Process,
        target: str,
        private: Callable[[], ProcessMemory],
        cancelled: Callable[[], bool],
    ) -> None:
        self.unreadable = UnreadablePages()
        self.files: list[GuestFile] = []
        self._by_inode: dict[tuple[int, int], GuestFile] = {}
        self._way = way
        self._path = way.commands.path
        self._process = process
        self._private = private
        self._cancelled = cancelled
        self._places: list[tuple[int, int, int]] = []
        self._told = True
        try:
            self.headers = way.headers(cancelled)
        except QmpError as refusal:
            from vmdump.sources.qemu.without_dump import describe_guest, has_no_dump  # most are dumped

            if not has_no_dump(refusal):
                raise
            self.headers = describe_guest(way.commands, target, refusal)
            self._told = False
        count = len(self.headers.loads)
        if count > _MAX_BLOCKS:
            raise LayoutError(f"{self._path}: {count} blocks of memory; at most {_MAX_BLOCKS} are read")
        ranges = sorted((int(load["p_paddr"]), int(load["p_memsz"])) for load in self.headers.loads)
        self._mappings = process.mappings()
        places = way.host_addresses(ranges, process, self._mappings, cancelled)
        self.blocks = []
        try:
            for (start, size), begin in zip(ranges, places, strict=True):
                self._places.append((start, size, begin))
                self.blocks.append(Block(start, WatchedMemory(self._memory(start, begin, size), start, self)))
        except BaseException:
            self.close()
            raise

    def _memory(self, start: int, begin: int, size: int) -> Memory:
        parts: list[Memory] = []
        position, end = begin, begin + size
        mappings = covering(self._mappings, begin, end)
        if not mappings:
            raise SourceError(
                f"the process behind {self._path} (number {self._process.pid}, {self._process.name}) "
                f"does not hold the guest's memory at {start:#x}",
                hint=ELSEWHERE,
                address=start,
            )
        for run in merged(mappings):
            piece = min(run.end, end) - position
            parts.append(self._part(run, position, piece))
            position += piece
        return parts[0] if len(parts) == 1 else JoinedMemory(parts)

    def _part(self, mapping: Mapping, begin: int, size: int) -> Memory:
        if mapping.inode == 0:
            return PrivateMemory(self._private(), begin, size)
        key = mapping.device, mapping.inode
        if key not in self._by_inode:
            self._by_inode[key] = self._process.open_mapped(mapping)
            self.files.append(self._by_inode[key])
        file = FileMemory(self._by_inode[key], mapping.offset + begin - mapping.begin, size)
        return file if mapping.shared else PrivateMemory(self._private(), begin, size, file)

    def know_data_of(self, before: GuestLayout) -> None:
        """Take over which long runs of the files are data, as found through an earlier layout."""
        for key, file in self._by_inode.items():
            if key in before._by_inode:
                file.data_runs.take(before._by_inode[key].data_runs)

    def open_files(self) -> tuple[os.stat_result, ...]:
        """Find the files and disks that QEMU has open."""
        return self._process.open_files()

    def demand_alive(self) -> None:
        """Raise QmpError if QEMU has ended."""
        self._way.commands.demand_alive()

    def has_same_registers(self) -> bool:
        """Tell whether QEMU gives the same notes as before; true where it gives none, or not quickly."""
        if not self._told or not self._way.has_quick_headers:
            return True
        return self._way.headers(self._cancelled).notes == self.headers.notes

    def demand_in_place(self) -> None:
        """Check that all blocks are still where they were: what was unplugged is zeros, or unreadable.

        Raises
        ------
        SourceError
            One was unplugged.
        """
        mappings = self._process.mappings()
        for start, size, begin in self._places:
            if not covering(mappings, begin, begin + size):
                raise SourceError(
                    f"the memory at guest-physical address {start:#x} was unplugged", address=start
                )

    def close(self) -> None:
        """Close the files; closing twice does nothing."""
        for file in self.files:
            file.close()
