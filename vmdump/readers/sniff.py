"""Find out what kind of dump a file is."""

from __future__ import annotations

import os

from vmdump.errors import FormatError
from vmdump.formats import flattened, kdump
from vmdump.formats.elf import ELFMAG
from vmdump.readers.dump import Dump
from vmdump.readers.elf import ElfDump
from vmdump.readers.file import ByteFile, FlattenedBytes, PlainBytes
from vmdump.readers.kdump import KdumpDump

__all__ = ["open_dump"]


def open_dump(path: str | os.PathLike[str]) -> Dump:
    """Open a dump of any kind that vmdump reads.

    Parameters
    ----------
    path : str or path
        An ELF core or a kdump-compressed file in either layout.

    Returns
    -------
    Dump
        To be closed by the caller.

    Raises
    ------
    SourceError
        The file is missing or unreadable.
    FormatError
        It is no such file, or damaged.
    CapabilityError
        It is of a kind that cannot be read yet.
    """
    plain = PlainBytes(path)
    try:
        magic = plain.read(0, min(16, plain.size))
        if magic.startswith(ELFMAG):
            return ElfDump(plain)
        if magic.startswith(kdump.SIGNATURE):
            return KdumpDump(plain, "standard")
        if magic.startswith(flattened.SIGNATURE):
            file: ByteFile = FlattenedBytes(plain)
            if file.read(0, min(16, file.size)).startswith(kdump.SIGNATURE):
                return KdumpDump(file, "flattened")
        raise FormatError(
            f"no ELF core and no kdump file; raw memory is written raw:{plain.path}", path=plain.path
        )
    except BaseException:
        plain.close()
        raise
