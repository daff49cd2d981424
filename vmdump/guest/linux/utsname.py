"""The names of a guest's system, and which of those that are told about it a reader takes.

libkdumpfile, and drgn with it, knows no architecture of a kdump file unless sysname is Linux and release,
version and machine are there.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["UTS_FIELD", "UTS_SIZE", "Utsname", "names_told"]

UTS_FIELD = 65
"""Bytes of a name, of which the last one is zero: __NEW_UTS_LEN + 1."""
UTS_SIZE = 6 * UTS_FIELD
_LINUX = b"Linux"
_UNKNOWN = b"unknown"
"""For a version that nobody tells: readers take names without one for damaged."""
_LOST = 4
"""makedumpfile 1.6.7 reads the names where they began before Linux 5.11, behind a counter of 4 bytes."""


class Utsname(NamedTuple):
    """What ``uname -a`` prints in the guest; empty where it is not known."""

    sysname: bytes = b""
    nodename: bytes = b""
    release: bytes = b""
    version: bytes = b""
    machine: bytes = b""
    domainname: bytes = b""

    @classmethod
    def unpack(cls, raw: bytes) -> Utsname | None:
        """Take the names out of ``struct new_utsname``; None if one has no end or is not text."""
        names = [raw[at : at + UTS_FIELD].split(b"\0", 1)[0] for at in range(0, UTS_SIZE, UTS_FIELD)]
        return cls(*names) if all(len(name) < UTS_FIELD and _is_text(name) for name in names) else None

    def is_of(self, release: bytes) -> bool:
        """Tell whether these are the names of a Linux of this release, or of any if it is empty."""
        return self.sysname == _LINUX and bool(self.release) and release in (b"", self.release)

    def completed(self, machine: bytes) -> Utsname:
        """Fill in what readers demand of a Linux; `machine` takes the place of the name that is there."""
        return self._replace(version=self.version or _UNKNOWN, machine=machine)

    @classmethod
    def of_release(cls, release: bytes) -> Utsname:
        """Make what is known of a Linux of which only the release is told."""
        return cls(sysname=_LINUX, release=release) if release and _is_text(release) else cls()


def names_told(raw: bytes, release: bytes) -> Utsname | None:
    """Take the names that the header of a kdump file tells, unless they are damaged.

    Parameters
    ----------
    raw : bytes
        The header's utsname, 390 bytes.
    release : bytes
        What VMCOREINFO tells; empty where there is none.

    Returns
    -------
    Utsname or None
        None where the header tells no names, or those of another kernel.
    """
    for shifted in (raw, _LINUX[:_LOST] + raw[:-_LOST], raw[_LOST:] + bytes(_LOST)):
        names = Utsname.unpack(shifted)
        if names is not None and names.is_of(release):
            return names
    names = Utsname.unpack(raw)
    ends = all(b"\0" not in raw[at : at + UTS_FIELD].rstrip(b"\0") for at in range(0, UTS_SIZE, UTS_FIELD))
    # Another system than Linux: nothing else tells of it.
    return names if names is not None and names.sysname and ends and not release else None


def _is_text(name: bytes) -> bool:
    return name.decode("utf-8", "replace").isprintable()
