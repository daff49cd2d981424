"""Raw RAM files opened as a dump."""

from __future__ import annotations

import os

from vmdump.guest.files import GuestFile
from vmdump.readers.dump import Dump
from vmdump.sources.rawfile import RawSource

__all__ = ["RawDump"]


class RawDump(Dump, RawSource):
    """The guest's memory, and nothing else; parameters and errors are those of :class:`RawSource`."""

    def _open(self, path: str | os.PathLike[str]) -> GuestFile:
        file = super()._open(path)
        self.path = self.files[0].path
        return file

    def close(self) -> None:
        """Close the files."""
        RawSource.close(self)
