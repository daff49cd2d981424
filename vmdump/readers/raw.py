"""A raw RAM file as a dump that was opened."""

from __future__ import annotations

from vmdump.readers.dump import Dump
from vmdump.sources.rawfile import open_raw

__all__ = ["RawDump"]


class RawDump(Dump):
    """The guest's memory from one address on, and nothing else.

    Parameters
    ----------
    path : str
        A regular file or block device; its holes are never read.
    options : dict of str
        ``base``, ``arch`` and ``page_size``, as of :func:`vmdump.sources.rawfile.open_raw`.

    Raises
    ------
    SourceError, LayoutError, RequestError
        As of :class:`vmdump.sources.rawfile.RawSource`.
    """

    format = "raw"

    def __init__(self, path: str, options: dict[str, str]) -> None:
        self._raw = raw = open_raw(path, options)
        self.path = path
        self.files = raw.files
        super().__init__(raw.blocks, raw.arch, page_size=raw.page_size)

    def close(self) -> None:
        """Close the file."""
        self._raw.close()
