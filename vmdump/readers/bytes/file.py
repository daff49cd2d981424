"""Bytes of a dump by offset: as they lie in a file or in a buffer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vmdump.errors import CapabilityError, CodecError, FormatError, LayoutError, ReadError, SourceError
from vmdump.guest.blocks import HasDescriptor, Memory, Pages
from vmdump.guest.buffers import BufferMemory
from vmdump.guest.files import FileMemory, GuestFile

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "BufferBytes",
    "ByteFile",
    "PartMemory",
    "PlainBytes",
    "RawBytes",
    "demand_inside",
    "most_notes",
    "naming_file",
    "read_bytes",
]

_NOTES_IN_HOLES = 256 << 20
"""Bytes of notes that every file may have; more have to be in the file, not in a hole."""


@contextmanager
def naming_file(path: str) -> Iterator[None]:
    """Name a file in every error about it that comes out of the context without a name."""
    try:
        yield
    except (CapabilityError, CodecError, FormatError, LayoutError, ReadError, SourceError) as error:
        error.name_file(path)
        raise


class ByteFile(Protocol):
    """A dump in its standard layout, wherever its bytes are. Reads may come from several threads."""

    path: str
    size: int

    @property
    def allocated(self) -> int:
        """Bytes that it occupies: fewer than its size where it has holes."""

    @property
    def files(self) -> tuple[HasDescriptor, ...]:
        """The open files that hold the bytes; none for a buffer."""

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset`; FormatError where that is not inside the file."""

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes; FormatError where they are not inside the file."""

    def memory(self, offset: int, size: int, filled: int) -> Memory:
        """Give guest memory that lies here: `filled` bytes from `offset` on, and zeros up to `size`."""

    def close(self) -> None:
        """Close the file; closing twice does nothing."""


class RawBytes(ByteFile, Protocol):
    """Bytes of which nothing is known yet, with what kernels take to read them themselves."""

    @property
    def stream(self) -> int | Pages:
        """A descriptor, or the bytes."""


def read_bytes(file: ByteFile, offset: int, length: int) -> bytes:
    """Give `length` bytes of a file; FormatError where they are not inside it."""
    if length < 0 or length > file.size:
        raise FormatError(f"{length} bytes are more than the file has", path=file.path, offset=offset)
    out = np.empty(length, np.uint8)
    file.read_into(offset, out)
    return out.tobytes()


def demand_inside(file: ByteFile, offset: int, length: int) -> None:
    """Raise FormatError if `length` bytes from `offset` on are not inside a file."""
    if offset < 0 or not 0 <= length <= file.size - offset:
        raise FormatError(
            f"{length} bytes end behind the end of the file at {file.size:#x}",
            path=file.path,
            offset=offset,
        )


def most_notes(file: ByteFile) -> int:
    """Give the bytes of notes that a file can have: the dump of a network card in a note takes 80 MiB."""
    return min(file.size, max(file.allocated, _NOTES_IN_HOLES))


class PlainBytes(GuestFile):
    """A file as it is; see :class:`vmdump.guest.files.GuestFile`."""

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset`; FormatError where that is not inside the file."""
        demand_inside(self, offset, out.size)
        super().read_into(offset, out)

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset`."""
        demand_inside(self, offset, length)
        try:
            data = os.pread(self.fd, length, offset)  # a third of the time of read_into(), for a few bytes
        except OverflowError:
            data = b""
        except OSError as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"cannot read at file offset {offset:#x}", path=self.path, errno=error.errno
            ) from error
        return data if len(data) == length else read_bytes(self, offset, length)

    def memory(self, offset: int, size: int, filled: int) -> Memory:
        """Give guest memory whose holes are known."""
        return FileMemory(self, offset, size, filled)

    @property
    def stream(self) -> int:
        """The descriptor."""
        return self.fd

    @property
    def allocated(self) -> int:
        """Bytes that the file occupies on its file system."""
        return os.fstat(self.fd).st_blocks * 512

    @property
    def files(self) -> tuple[HasDescriptor, ...]:
        """The file itself."""
        return (self,)


class BufferBytes:
    """A dump in a buffer, which stays the caller's and is not copied.

    Parameters
    ----------
    buffer : buffer
        C-contiguous; must not change while the dump is open.

    Raises
    ------
    LayoutError
        It is not contiguous, or holds Python objects.
    """

    path = "buffer"
    files: tuple[HasDescriptor, ...] = ()

    def __init__(self, buffer: Buffer) -> None:
        self._memory = BufferMemory(buffer)
        self.size = self.allocated = self._memory.size

    @property
    def stream(self) -> Pages:
        """The bytes."""
        return self._memory.view(0, self.size, np.empty(0, np.uint8))

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset`; FormatError where that is not inside the buffer."""
        demand_inside(self, offset, out.size)
        out[:] = self.stream[offset : offset + out.size]

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset`."""
        return read_bytes(self, offset, length)

    def memory(self, offset: int, size: int, filled: int) -> Memory:
        """Give guest memory in the buffer."""
        if filled == size:
            return BufferMemory(self.stream[offset : offset + size])
        return PartMemory(self, offset, size, filled)

    def close(self) -> None:
        """Forget the buffer."""
        self._memory = BufferMemory(b"")


class PartMemory:
    """A block whose bytes are a range of any `ByteFile`, and zeros behind it."""

    copies = True

    def __init__(self, file: ByteFile, offset: int, size: int, filled: int) -> None:
        self._file = file
        self._offset = offset
        self.size = size
        self._filled = filled

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the range that the file holds."""
        if self._filled:
            yield 0, self._filled

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Read into `scratch`."""
        out = scratch[:length]
        held = min(max(self._filled - offset, 0), length)
        if held:
            self._file.read_into(self._offset + offset, out[:held])
        out[held:] = 0
        return out
