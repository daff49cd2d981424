"""VMCOREINFO: what a Linux kernel tells about itself, one ``KEY=value`` per line.

Source: the kernel's Documentation/admin-guide/kdump/vmcoreinfo.rst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmdump.errors import FormatError

__all__ = ["Vmcoreinfo"]

_MAX_SIZE = 1 << 20
"""Bytes: what QEMU takes of a guest. Linux has one page; 60 MiB of short lines took 40 s and 1.4 GB."""
_LONGEST = 80
"""Characters of a number: 64 bits have 20 at most. An error that shows one stays a line."""


class Vmcoreinfo(Mapping[str, str]):
    r"""The lines of a VMCOREINFO note as a mapping.

    Parameters
    ----------
    text : bytes
        The note's descriptor; bytes beyond the first zero are ignored.

    Raises
    ------
    FormatError
        It is longer than any kernel's.

    Examples
    --------
    >>> Vmcoreinfo(b"OSRELEASE=6.1.0\nNUMBER(phys_base)=-4096\n").number("phys_base")
    -4096
    """

    def __init__(self, text: bytes) -> None:
        if len(text) > _MAX_SIZE:
            raise FormatError(f"VMCOREINFO has {len(text)} bytes, and no kernel's has more than {_MAX_SIZE}")
        self.text = text
        self._lines: dict[str, str] = {}
        for line in text.split(b"\0", 1)[0].decode("utf-8", "surrogateescape").splitlines():
            key, equals, value = line.partition("=")
            if equals:
                self._lines.setdefault(key, value)

    def __getitem__(self, key: str) -> str:
        return self._lines[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def number(self, name: str) -> int | None:
        """Read ``NUMBER(name)``: signed decimal as the kernel prints it, or 0x; None if absent."""
        return _integer(self.get(f"NUMBER({name})"), 0)

    def symbol(self, name: str) -> int | None:
        """Read the virtual address ``SYMBOL(name)``, hexadecimal without 0x; None if absent."""
        return self.hexadecimal(f"SYMBOL({name})")

    def hexadecimal(self, key: str) -> int | None:
        """Read the line of this key, a hexadecimal number without 0x such as KERNELOFFSET; None if absent."""
        return _integer(self.get(key), 16)

    def offset(self, member: str) -> int | None:
        """Read ``OFFSET(struct.member)`` in bytes; None if absent."""
        return _integer(self.get(f"OFFSET({member})"), 0)

    def struct_size(self, struct: str) -> int | None:
        """Read ``SIZE(struct)`` in bytes; None if absent."""
        return _integer(self.get(f"SIZE({struct})"), 0)

    def length(self, array: str) -> int | None:
        """Read ``LENGTH(array)`` in elements; None if absent."""
        return _integer(self.get(f"LENGTH({array})"), 0)

    @property
    def page_size(self) -> int | None:
        """``PAGESIZE`` in bytes; None if absent."""
        return _integer(self.get("PAGESIZE"), 0)


def _integer(text: str | None, base: int) -> int | None:
    if text is None or len(text) > _LONGEST:
        return None
    try:
        return int(text, base)
    except ValueError:
        return None
