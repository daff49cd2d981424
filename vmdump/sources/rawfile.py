"""A raw RAM file: the guest's memory from one address on, and nothing else."""

from __future__ import annotations

import os

from vmdump.arch import arch_by_name
from vmdump.errors import LayoutError, SourceError
from vmdump.sources.base import MIN_PAGE_SIZE, Block, Source
from vmdump.sources.files import FileMemory, open_for_reading
from vmdump.sources.spec import check_options
from vmdump.units import parse_size

__all__ = ["RawSource", "open_raw"]


class RawSource(Source):
    """A guest with one block, the whole of a file.

    Parameters
    ----------
    path : str
        A regular file or block device; its holes are never read.
    base : int
        Guest-physical address of the first byte.
    arch : str
        The guest's architecture.

    Raises
    ------
    SourceError
        The file is missing or unreadable.
    LayoutError
        Its size is zero or no multiple of 4096.
    RequestError
        The architecture is not known.
    """

    def __init__(self, path: str | os.PathLike[str], *, base: int = 0, arch: str = "x86_64") -> None:
        known_arch = arch_by_name(arch)
        name = os.fspath(path)
        self._fd = open_for_reading(name)
        try:
            size = os.lseek(self._fd, 0, os.SEEK_END)
            if size == 0:
                raise SourceError("the file is empty", path=name)
            if size % MIN_PAGE_SIZE or base % MIN_PAGE_SIZE:
                raise LayoutError(
                    f"{name}: {size:#x} bytes at {base:#x} are no whole pages of {MIN_PAGE_SIZE} bytes",
                    address=base,
                )
            super().__init__([Block(base, FileMemory(self._fd, name, 0, size))], known_arch)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_raw(path: str, options: dict[str, str]) -> RawSource:
    """Open what ``raw:PATH?base=...&arch=...`` names.

    Raises
    ------
    RequestError
        An option is not known or no number; and what :class:`RawSource` raises.
    """
    check_options(options, ("base", "arch"), "raw")
    base = parse_size(options.get("base", "0"), parameter="base")
    return RawSource(path, base=base, arch=options.get("arch", "x86_64"))
