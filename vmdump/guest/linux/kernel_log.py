"""The log of a guest's Linux kernel, found through VMCOREINFO, without debugging symbols.

Three forms, told apart by the symbols that VMCOREINFO has: the lockless ring of 5.10 and later (``prb``),
the records of 3.5 to 5.9 (``log_first_idx``), and the ring of characters before (``log_end``). Sources: the
kernel's Documentation/admin-guide/kdump/vmcoreinfo.rst, kernel/printk/printk_ringbuffer.h and printk.c.

What a guest's memory says is hostile: rings are walked no further than they have room, and their sizes are
bounded by what a kernel can have.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from vmdump.arch import Arch
from vmdump.errors import CapabilityError, FormatError, ReadError
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.linux.found import HasMemory
from vmdump.units import ADDRESS_LIMIT

__all__ = ["LogRecord", "Logging", "read_log"]

_MAX_SIZE_BITS = 31
"""The kernel's LOG_BUF_LEN_MAX is 2 GiB."""
_MAX_COUNT_BITS = 26
"""It has a descriptor for every 32 characters."""
_ID_SHARE = 2
"""Bits at the top of a descriptor's state_var that are its state; the others are the record's number."""
_READABLE = (1, 2)
"""States: committed, finalized. Others are still being written, or free."""
_CPU = 0x80000000
"""In a caller's number: a CPU in interrupt context, not a task."""
_WINDOW = 4096
_WINDOWS_KEPT = 512
_LONGEST_LINE = 64 << 10
"""Text without a newline is cut here: what is not a log must not be gathered in memory."""
_NANOSECONDS = 1_000_000_000
_PREFIX = re.compile(rb"<(\d{1,3})>")
_LEVEL_BITS = 3
_AS_IT_IS = frozenset(b"\t\v\f\r" + bytes(range(0x20, 0x7F)))


@dataclass(frozen=True)
class LogRecord:
    r"""One message of a kernel's log.

    Attributes
    ----------
    text : bytes
        As the kernel keeps it, without the newline at its end.
    timestamp : int or None
        Nanoseconds since the boot; None where the kernel keeps none apart from the text (before 3.5).
    level : int or None
        0 (emergency) to 7 (debug); None where it is not told.
    facility : int or None
        Syslog's number; 0 is the kernel itself.
    caller : str
        Who logged it, ``T`` and a task's number or ``C`` and a CPU's; empty where the kernel does not tell.

    Examples
    --------
    >>> print(LogRecord(b"first\nsecond \xc3\xa4", 1_250_000_000).line())
    [    1.250000] first
                   second \xc3\xa4
    """

    text: bytes
    timestamp: int | None = None
    level: int | None = None
    facility: int | None = None
    caller: str = ""

    def line(self) -> str:
        r"""Format the record as ``makedumpfile --dump-dmesg`` does, without the newline at its end.

        Lines after the first are indented as far as its text; bytes that are not printable ASCII are written
        as ``\xHH``. (makedumpfile writes ``\xffffffHH`` for those above 0x7f where C's char has a sign.)
        """
        if self.timestamp is not None:
            seconds, rest = divmod(self.timestamp, _NANOSECONDS)
            head = f"[{seconds:5d}.{rest // 1000:06d}] "
        elif self.level is not None:
            head = f"<{(self.facility or 0) << _LEVEL_BITS | self.level}>"
        else:
            head = ""
        lines = (
            "".join(chr(byte) if byte in _AS_IT_IS else f"\\x{byte:02x}" for byte in line)
            for line in self.text.split(b"\n")
        )
        return head + ("\n" + " " * len(head)).join(lines)


class Logging(HasMemory, Protocol):
    """What of a guest its log takes; :class:`vmdump.guest.guest.Guest` tells of each."""

    @property
    def arch(self) -> Arch:
        """The guest's architecture."""

    @property
    def vmcoreinfo(self) -> Vmcoreinfo:
        """Its VMCOREINFO."""

    def kernel_to_phys(self, address: int) -> int | None:
        """Find what the kernel maps directly."""

    def read_virtual(self, address: int, length: int) -> bytes:
        """Read virtual memory."""


def read_log(guest: Logging) -> Iterator[LogRecord]:
    """Read the log of a guest's Linux kernel, the oldest record first.

    Yields
    ------
    LogRecord

    Raises
    ------
    CapabilityError
        The guest has no VMCOREINFO, or that of a kernel without a log.
    TranslationError
        An address of the kernel cannot be translated.
    FormatError
        The log's sizes make no sense.
    ReadError, SourceError, CodecError
        Memory of the log is not in the dump, or cannot be read.
    """
    if not guest.vmcoreinfo:
        raise CapabilityError("no VMCOREINFO: the guest is not Linux, or does not tell where its log is")
    for symbol, read in (("prb", _ring), ("log_first_idx", _records), ("log_end", _characters)):
        if guest.vmcoreinfo.symbol(symbol) is not None:
            yield from read(_Kernel(guest))
            return
    raise CapabilityError(
        "VMCOREINFO has no symbol prb, log_first_idx or log_end: it does not tell where the log is"
    )


class _Kernel:
    """A kernel's virtual memory, and what VMCOREINFO tells of its structs."""

    def __init__(self, guest: Logging) -> None:
        self._guest = guest
        self._told = guest.vmcoreinfo
        self._windows: OrderedDict[int, bytes] = OrderedDict()
        self.byteorder = guest.byteorder
        # A list_head is two pointers. The file's class says less: a 32-bit guest with much memory has a
        # 64-bit file.
        pair = self._told.struct_size("list_head")
        self.word = pair // 2 if pair in (8, 16) else guest.arch.elf_class // 8

    def symbol(self, name: str) -> int:
        return self._demand(f"SYMBOL({name})", self._told.symbol(name), ADDRESS_LIMIT)

    def offset(self, member: str) -> int:
        return self._demand(f"OFFSET({member})", self._told.offset(member), _WINDOW)

    def size(self, struct: str) -> int:
        return self._demand(f"SIZE({struct})", self._told.struct_size(struct) or None, _WINDOW)

    def has_struct(self, struct: str) -> bool:
        return self._told.struct_size(struct) is not None

    def buffer(self) -> tuple[int, int]:
        """Give address and size of log_buf."""
        size = self.number(self.symbol("log_buf_len"), 4)
        if not 0 < size <= 1 << _MAX_SIZE_BITS:
            raise FormatError(f"the kernel's log claims a buffer of {size:#x} bytes")
        return self.number(self.symbol("log_buf")), size

    def _demand(self, what: str, value: int | None, limit: int) -> int:
        if value is None or not 0 <= value < limit:
            raise CapabilityError(
                f"VMCOREINFO has no usable {what}, which it takes to read this kernel's log"
            )
        return value

    def parse(self, raw: bytes) -> int:
        return int.from_bytes(raw, self.byteorder)

    def number(self, address: int, size: int = 0) -> int:
        """Read a number of `size` bytes; a pointer or long, if not given."""
        return self.parse(self.read(address, size or self.word))

    def read(self, address: int, length: int) -> bytes:
        """Read virtual memory by windows, the last of which are kept: a log is read in pieces, in order."""
        parts = []
        while length > 0:
            start = address - address % _WINDOW
            window = self._windows.get(start)
            if window is None:
                window = self._windows[start] = self._read_window(start)
                if len(self._windows) > _WINDOWS_KEPT:
                    self._windows.popitem(last=False)
            part = window[address - start : address - start + length]
            parts.append(part)
            address += len(part)
            length -= len(part)
        return b"".join(parts)

    def _read_window(self, address: int) -> bytes:
        try:
            return self._guest.read_virtual(address, _WINDOW)
        except (CapabilityError, ReadError):
            # What is mapped directly needs neither page tables nor a walk.
            physical = self._guest.kernel_to_phys(address)
            if physical is None or not self._is_memory(physical):
                raise
            return self._guest.read(physical, _WINDOW)

    def _is_memory(self, address: int) -> bool:
        return any(block.start <= address <= block.end - _WINDOW for block in self._guest.blocks)

    def level(self, byte: int) -> int:
        """Take the level out of a byte that it shares with five bits of flags; a compiler decides where."""
        return byte >> (8 - _LEVEL_BITS) if self.byteorder == "little" else byte & ((1 << _LEVEL_BITS) - 1)

    def caller(self, number: int) -> str:
        return f"C{number & ~_CPU}" if number & _CPU else f"T{number}"


def _ring(kernel: _Kernel) -> Iterator[LogRecord]:
    """Read the lockless ring: numbered descriptors, each with the place of its text in another ring."""
    ring = kernel.number(kernel.symbol("prb"))
    descriptors = ring + kernel.offset("printk_ringbuffer.desc_ring")
    texts = ring + kernel.offset("printk_ringbuffer.text_data_ring")
    count_bits = kernel.number(descriptors + kernel.offset("prb_desc_ring.count_bits"), 4)
    size_bits = kernel.number(texts + kernel.offset("prb_data_ring.size_bits"), 4)
    if count_bits > _MAX_COUNT_BITS or size_bits > _MAX_SIZE_BITS:
        raise FormatError(f"the kernel's log claims 2^{count_bits} records and 2^{size_bits} characters")
    ids = 1 << (8 * kernel.word - _ID_SHARE)
    tail = kernel.number(descriptors + kernel.offset("prb_desc_ring.tail_id")) % ids
    head = kernel.number(descriptors + kernel.offset("prb_desc_ring.head_id")) % ids
    length = (head - tail) % ids + 1
    if length > 1 << count_bits:
        raise FormatError(f"the kernel's log claims {length} records in a ring of {1 << count_bits}")
    table = kernel.number(descriptors + kernel.offset("prb_desc_ring.descs"))
    infos = kernel.number(descriptors + kernel.offset("prb_desc_ring.infos"))
    data = kernel.number(texts + kernel.offset("prb_data_ring.data"))
    row, info_row = kernel.size("prb_desc"), kernel.size("printk_info")
    state_at = kernel.offset("prb_desc.state_var")
    place_at = kernel.offset("prb_desc.text_blk_lpos")
    begin_at = place_at + kernel.offset("prb_data_blk_lpos.begin")
    next_at = place_at + kernel.offset("prb_data_blk_lpos.next")
    for step in range(length):
        number = (tail + step) % ids
        index = number % (1 << count_bits)
        descriptor = table + index * row
        state = kernel.number(descriptor + state_at)
        if state % ids != number or state // ids not in _READABLE:
            continue
        begin = kernel.number(descriptor + begin_at) % (1 << size_bits)
        end = kernel.number(descriptor + next_at) % (1 << size_bits)
        if begin == end:  # a record without text, or one whose text found no room
            continue
        if begin > end:  # a text is never split: this one did not fit behind `begin`
            begin = 0
        begin += kernel.word  # the number of its descriptor stands in front of a text
        yield _ring_record(kernel, infos + index * info_row, data + begin, max(end - begin, 0))


def _ring_record(kernel: _Kernel, info: int, text: int, room: int) -> LogRecord:
    length_at = kernel.offset("printk_info.text_len")
    length = kernel.number(info + length_at, 2)
    # Behind u16 text_len: u8 facility, and u8 of flags and level.
    facility, byte = kernel.read(info + length_at + 2, 2)
    return LogRecord(
        kernel.read(text, min(length, room)),
        kernel.number(info + kernel.offset("printk_info.ts_nsec"), 8),
        kernel.level(byte),
        facility,
        kernel.caller(kernel.number(info + kernel.offset("printk_info.caller_id"), 4)),
    )


def _records(kernel: _Kernel) -> Iterator[LogRecord]:
    """Read records of struct printk_log, called log at first, that follow each other in a buffer."""
    struct = "printk_log" if kernel.has_struct("printk_log") else "log"
    buffer, size = kernel.buffer()
    head = kernel.size(struct)
    length_at, text_at = kernel.offset(f"{struct}.len"), kernel.offset(f"{struct}.text_len")
    time_at = kernel.offset(f"{struct}.ts_nsec")
    position = kernel.number(kernel.symbol("log_first_idx"), 4)
    end = kernel.number(kernel.symbol("log_next_idx"), 4)
    walked = 0
    while position != end:
        if position > size - head:
            raise FormatError(f"a record of the kernel's log is at {position:#x}, the log ends at {size:#x}")
        length = kernel.number(buffer + position + length_at, 2)
        if length == 0:  # the next one did not fit behind here, and is at the start
            if position == 0:
                raise FormatError("a record of the kernel's log has no length")
            walked += size - position
            position = 0
            continue
        text_length = kernel.number(buffer + position + text_at, 2)
        if not head + text_length <= length <= size - position:
            raise FormatError(f"a record of the kernel's log at {position:#x} contradicts itself")
        walked += length
        if walked > size:
            raise FormatError("the records of the kernel's log go round in a circle")
        # Behind u16 text_len: u16 dict_len, u8 facility, and u8 of flags and level.
        facility, byte = kernel.read(buffer + position + text_at + 4, 2)
        yield LogRecord(
            kernel.read(buffer + position + head, text_length),
            kernel.number(buffer + position + time_at, 8),
            kernel.level(byte),
            facility,
        )
        position += length


def _characters(kernel: _Kernel) -> Iterator[LogRecord]:
    """Read the ring of characters; each line begins with ``<level>``."""
    buffer, size = kernel.buffer()
    end = kernel.number(kernel.symbol("log_end"), 4)
    length = min(end, size)
    begin = (end - length) % size
    pending = b""
    while length > 0:
        piece = kernel.read(buffer + begin, min(_WINDOW, length, size - begin))
        length -= len(piece)
        begin = (begin + len(piece)) % size
        *lines, pending = (pending + piece).split(b"\n")
        yield from map(_line, lines)
        if len(pending) > _LONGEST_LINE:
            yield _line(pending)
            pending = b""
    if pending:
        yield _line(pending)


def _line(line: bytes) -> LogRecord:
    found = _PREFIX.match(line)
    if found is None:
        return LogRecord(line)
    facility, level = divmod(int(found[1]), 1 << _LEVEL_BITS)
    return LogRecord(line[found.end() :], None, level, facility)
