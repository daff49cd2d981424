"""What a file system does that counts for the room a dump takes."""

from __future__ import annotations

import os
import sys

__all__ = ["compresses"]

_COMPRESSING = (0x9123683E, 0x2FC12FC1, 0xCA451A4E)
"""f_type of btrfs, ZFS and bcachefs; whether they do is a setting of each file."""
_LARGEST = 512
"""Bytes, more than any struct statfs has."""


def compresses(fd: int) -> bool:
    """Tell whether the file system of an open file may compress what is written to it.

    Parameters
    ----------
    fd : int
        The file's descriptor.
    """
    return _type_of(fd) in _COMPRESSING


def _type_of(fd: int) -> int:
    """Give the file system's f_type; 0 where it does not say."""
    import ctypes  # few dumps come near to a disk's room

    status = ctypes.create_string_buffer(_LARGEST)
    if ctypes.CDLL(None).fstatfs(fd, status):
        return 0
    # It is the first field, a long; s390 has an unsigned int.
    size = 4 if os.uname().machine.startswith("s390") else ctypes.sizeof(ctypes.c_long)
    return int.from_bytes(status.raw[:size], sys.byteorder) & 0xFFFFFFFF
