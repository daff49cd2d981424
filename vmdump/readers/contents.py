"""What a reader is given: the bytes of a dump, and what the user says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vmdump.arch import Arch
from vmdump.readers.bytes.file import ByteFile

if TYPE_CHECKING:
    from vmdump.readers.checking import Checking

__all__ = ["Contents"]


class Contents(NamedTuple):
    """The files of one dump, put in place; whoever reads them owns them.

    Attributes
    ----------
    files : sequence of ByteFile
        One, or the parts of a split set in any order.
    layout : {"standard", "flattened"}
        How their bytes lie on the disk.
    arch : Arch
        The guest's, where the file does not tell.
    checking : Checking or None
        For a damaged dump: how to find out which pages unpack, which takes reading all of them. None to skip
        that.
    """

    files: Sequence[ByteFile]
    layout: str
    arch: Arch
    checking: Checking | None = None

    @property
    def file(self) -> ByteFile:
        """The first file; the only one of a dump that is not split."""
        return self.files[0]
