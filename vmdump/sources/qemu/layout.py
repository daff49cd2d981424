"""Where a guest's memory is: QEMU's own list of blocks with its notes, and their place in its process."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import select
import time
from collections.abc import Callable
from contextlib import suppress

from vmdump.errors import Cancelled, FormatError, LayoutError, QmpError, SourceError
from vmdump.formats.elf_headers import ElfHeaders, read_headers
from vmdump.guest.blocks import Block, Memory
from vmdump.guest.files import FileMemory, GuestFile
from vmdump.sources.process.memory import (
    JoinedMemory,
    PrivateMemory,
    ProcessMemory,
    UnreadablePages,
    WatchedMemory,
)
from vmdump.sources.process.process import Mapping, Process, covering
from vmdump.sources.qemu.monitor import Monitor

__all__ = ["GuestLayout", "ask_headers"]

_FD_NAME = "vmdump"
_PIPE_SIZES = (64 << 10, 1 << 20)
"""Bytes. QEMU fails when such a pipe is full, and waits for nobody; x86's notes of 80 vCPUs fit, of 1,200.
Beyond them it has to wait."""
_POLL_MS = 20
_HEADERS_WAIT = 120.0
_MAX_HEADERS = 128 << 20
"""Bytes: 65533 blocks need 4 MiB of program headers, 4096 vCPUs some 16 MiB of notes."""
_MAX_BLOCKS = 1 << 17
"""2 KiB of this process each; QEMU's own tables of memory slots end at 32764."""
_ASKED_AT_ONCE = 4096
_ELSEWHERE = "is QEMU on another host, or behind a proxy? run vmdump where it is, on its own socket"
_HVA = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(.*\) is 0x([0-9a-f]+)\s*", re.DOTALL)


class _PipeFull(Exception):
    """QEMU's headers need more than the pipe holds."""


class _Pipe:
    """The first bytes of what QEMU writes to a pipe, by offset."""

    def __init__(self, fd: int, name: str, ended: Callable[[], bool], cancelled: Callable[[], bool]) -> None:
        self._fd = fd
        self._name = name
        self._ended = ended
        self._cancelled = cancelled
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._data = bytearray()
        self.at_end = False
        self._deadline = time.monotonic() + _HEADERS_WAIT

    @property
    def began(self) -> bool:
        """Whether QEMU has written anything."""
        return bool(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset`; FormatError where QEMU wrote fewer."""
        if offset + length > _MAX_HEADERS:
            raise FormatError("headers and notes are too large", path=self._name, offset=offset)
        while len(self._data) < offset + length:
            # QEMU holds the other end open as well while it has not yet taken it for the dump.
            ended = self._ended()
            if self._poll.poll(0 if ended else _POLL_MS):
                part = os.read(self._fd, 1 << 16)
            elif ended or time.monotonic() > self._deadline:
                part = b""
            elif self._cancelled():
                raise Cancelled("cancelled while waiting for QEMU")
            else:
                continue
            self.at_end = not part
            if not part:
                raise FormatError("QEMU's dump ends within its headers", path=self._name, offset=offset)
            self._data += part
        return bytes(self._data[offset : offset + length])


def ask_headers(monitor: Monitor, cancelled: Callable[[], bool]) -> ElfHeaders:
    """Let QEMU begin an ELF dump into a pipe, take its headers and notes, and close the pipe.

    QEMU stops a running guest for that, for some 0.5 ms, and lets it run again. Its main loop writes the
    dump: were it to wait for a reader that somebody has suspended, guest and monitors would wait with it.

    Parameters
    ----------
    monitor : Monitor
        The guest's.
    cancelled : callable
        Asked while waiting.

    Raises
    ------
    QmpError
        QEMU refuses to dump.
    FormatError
        What it writes are not ELF headers.
    Cancelled
        `cancelled` returned true.
    """
    for size in _PIPE_SIZES:
        with suppress(_PipeFull):
            return _take_headers(monitor, cancelled, size)
    return _take_headers(monitor, cancelled, None)


def _take_headers(monitor: Monitor, cancelled: Callable[[], bool], pipe_size: int | None) -> ElfHeaders:
    """Take the headers through a pipe of a size, which may raise _PipeFull, or one whose writer waits."""
    reader, writer = os.pipe()
    try:
        try:
            monitor.wait(monitor.pass_fd(writer, _FD_NAME), cancelled=cancelled)
            if pipe_size is not None:
                # Not before: QEMU makes what it is given blocking.
                os.set_blocking(writer, False)
                with suppress(OSError):  # beyond pipe-max-size, or the user's share; it is only a wish
                    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, pipe_size)
        except QmpError as error:
            if not error.error_class:
                raise
            raise SourceError(
                "what is behind this socket takes no file descriptor", path=monitor.path, hint=_ELSEWHERE
            ) from error
        finally:
            os.close(writer)
        request = {"paging": False, "protocol": f"fd:{_FD_NAME}"}
        answer = monitor.begin(monitor.ask("dump-guest-memory", request))
        pipe = _Pipe(reader, monitor.path, answer.done, cancelled)
        try:
            headers = read_headers(pipe.read, path=monitor.path)
        except FormatError:
            # QEMU closes the pipe first, and then says why.
            refusal = answer.exception() if pipe.at_end else None
            if refusal is None:
                raise
            if pipe_size is not None and pipe.began and isinstance(refusal, QmpError) and refusal.error_class:
                raise _PipeFull from refusal
            with suppress(QmpError):
                monitor.execute("closefd", {"fdname": _FD_NAME})
            raise refusal from None
    finally:
        os.close(reader)
    # It fails with EAGAIN or EPIPE, after which QEMU takes commands again; or all fitted into the pipe.
    failure = answer.exception()
    if not isinstance(failure, QmpError | None):
        raise failure
    monitor.demand_alive()
    return headers


async def _host_addresses(monitor: Monitor, addresses: list[int]) -> list[int]:
    found = []
    # Many at once: one by one each takes the time of a round trip, and the guest is paused.
    for first in range(0, len(addresses), _ASKED_AT_ONCE):
        part = addresses[first : first + _ASKED_AT_ONCE]
        lines = [f"gpa2hva {address:#x}" for address in part]
        texts = await asyncio.gather(
            *(monitor.ask("human-monitor-command", {"command-line": line}) for line in lines)
        )
        for address, line, text in zip(part, lines, texts, strict=True):
            match = _HVA.fullmatch(text)
            if match is None:
                raise LayoutError(f"{monitor.path}: {line}: {' '.join(text[:200].split())}", address=address)
            found.append(int(match[1], 16))
    return found


class GuestLayout:
    """A guest's memory as it is laid out at one moment.

    Parameters
    ----------
    monitor : Monitor
        The guest's.
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
        monitor: Monitor,
        process: Process,
        target: str,
        private: Callable[[], ProcessMemory],
        cancelled: Callable[[], bool],
    ) -> None:
        self.unreadable = UnreadablePages()
        self.files: list[GuestFile] = []
        self._by_inode: dict[tuple[int, int], GuestFile] = {}
        self._monitor = monitor
        self._process = process
        self._private = private
        self._cancelled = cancelled
        self._places: list[tuple[int, int, int]] = []
        self._told = True
        try:
            self.headers = ask_headers(monitor, cancelled)
        except QmpError as refusal:
            from vmdump.sources.qemu.without_dump import describe_guest, has_no_dump  # most are dumped

            if not has_no_dump(refusal):
                raise
            self.headers = describe_guest(monitor, target, refusal)
            self._told = False
        count = len(self.headers.loads)
        if count > _MAX_BLOCKS:
            raise LayoutError(f"{monitor.path}: {count} blocks of memory; at most {_MAX_BLOCKS} are read")
        ranges = sorted((int(load["p_paddr"]), int(load["p_memsz"])) for load in self.headers.loads)
        bounds = [start for start, _ in ranges] + [start + size - 1 for start, size in ranges]
        self._mappings = process.mappings()
        addresses = monitor.wait(_host_addresses(monitor, bounds), cancelled=cancelled)
        self.blocks = []
        try:
            for (start, size), begin, last in zip(
                ranges, addresses[: len(ranges)], addresses[len(ranges) :], strict=True
            ):
                if last - begin != size - 1:
                    raise LayoutError(
                        f"{monitor.path}: the block at {start:#x} is not contiguous in QEMU", address=start
                    )
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
                f"the process behind {self._monitor.path} (number {self._process.pid}, {self._process.name}) "
                f"does not hold the guest's memory at {start:#x}",
                hint=_ELSEWHERE,
                address=start,
            )
        for run in _merged(mappings):
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

    def open_files(self) -> tuple[os.stat_result, ...]:
        """Find the files and disks that QEMU has open."""
        return self._process.open_files()

    def demand_alive(self) -> None:
        """Raise QmpError if QEMU has ended."""
        self._monitor.demand_alive()

    def has_same_registers(self) -> bool:
        """Tell whether QEMU gives the same notes as before; true where it cannot give any."""
        return not self._told or ask_headers(self._monitor, self._cancelled).notes == self.headers.notes

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


def _merged(mappings: list[Mapping]) -> list[Mapping]:
    """Join neighbours of the same kind: QEMU's madvise and mbind calls split what is one mapping."""
    merged: list[Mapping] = []
    for mapping in mappings:
        if merged and _continues(merged[-1], mapping):
            mapping = Mapping(**(vars(merged.pop()) | {"end": mapping.end}))
        merged.append(mapping)
    return merged


def _continues(first: Mapping, second: Mapping) -> bool:
    same = (first.shared, first.device, first.inode) == (second.shared, second.device, second.inode)
    return same and (first.inode == 0 or second.offset - first.offset == second.begin - first.begin)
