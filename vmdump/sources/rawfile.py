"""A raw RAM file: the guest's memory from one address on, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from vmdump.arch import arch_by_name
from vmdump.errors import LayoutError, SourceError
from vmdump.sources.base import MIN_PAGE_SIZE, Block, Source
from vmdump.sources.files import FileMemory, GuestFile
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
    page_size : int, optional
        The dump's block size in bytes; see :class:`vmdump.sources.base.Source`.
    cpus : sequence of mapping of str to int, optional
        The registers of each vCPU; see :class:`vmdump.sources.base.Source`.

    Raises
    ------
    SourceError
        The file is missing, unreadable or empty.
    LayoutError
        Its size is no multiple of 4096, or the page size is wrong.
    RequestError
        The architecture is not known, or `cpus` are wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        base: int = 0,
        arch: str = "x86_64",
        page_size: int | None = None,
        cpus: Sequence[Mapping[str, int]] | None = None,
    ) -> None:
        known_arch = arch_by_name(arch)
        self._file = file = GuestFile(path)
        self.files = (file,)
        try:
            if file.size == 0:
                raise SourceError("the file is empty", path=file.path)
            if file.size % MIN_PAGE_SIZE or base % MIN_PAGE_SIZE:
                raise LayoutError(
                    f"{file.path}: {file.size:#x} bytes at {base:#x} are no whole pages of "
                    f"{MIN_PAGE_SIZE} bytes",
                    address=base,
                )
            block = Block(base, FileMemory(file, 0, file.size))
            super().__init__([block], known_arch, page_size=page_size, cpus=cpus)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_raw(path: str, options: dict[str, str]) -> RawSource:
    """Open what ``raw:PATH?base=...&arch=...&page_size=...`` names.

    Raises
    ------
    RequestError
        An option is not known or no number; and what :class:`RawSource` raises.
    """
    check_options(options, ("base", "arch", "page_size"), "raw")
    return RawSource(
        path,
        base=parse_size(options.get("base", "0"), parameter="base"),
        arch=options.get("arch", "x86_64"),
        page_size=parse_size(options["page_size"], parameter="page_size") if "page_size" in options else None,
    )
