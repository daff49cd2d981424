"""Raw RAM files as a dump that was opened."""

from __future__ import annotations

from typing import Self

from vmdump.guest.linux.found import FoundVmcoreinfo
from vmdump.readers.dump import Dump
from vmdump.sources.rawfile import RawSource

__all__ = ["RawDump"]


class RawDump(Dump):
    """The guest's memory, and nothing else.

    Parameters
    ----------
    raw : RawSource
        The files; closed with the dump.
    """

    format = RawSource.format

    def __init__(self, raw: RawSource) -> None:
        self._raw = raw
        self.path = raw.files[0].path
        self.files = raw.files
        super().__init__(raw.blocks, raw.arch, page_size=raw.page_size)

    def with_vmcoreinfo(self, text: bytes, *, found: FoundVmcoreinfo | None = None) -> Self:
        """Give the same guest with another VMCOREINFO; see :meth:`vmdump.sources.rawfile.RawSource`."""
        self._raw.with_vmcoreinfo(text)
        return super().with_vmcoreinfo(text, found=found)

    def close(self) -> None:
        """Close the files."""
        self._raw.close()
