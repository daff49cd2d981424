"""QEMU's word for where guest memory is in its process: the human monitor's ``gpa2hva``."""

from __future__ import annotations

import re

from vmdump.errors import LayoutError

__all__ = ["demand_contiguous", "host_address", "host_address_line"]

_HVA = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(.*\) is 0x([0-9a-f]+)\s*", re.DOTALL)
_MAX_TEXT = 200


def host_address_line(address: int) -> str:
    """Give the command line that asks for the host address of a guest-physical one."""
    return f"gpa2hva {address:#x}"


def host_address(path: str, address: int, text: str) -> int:
    """Read the answer to :func:`host_address_line`.

    Parameters
    ----------
    path : str
        What errors name.
    address : int
        What was asked for.
    text : str
        QEMU's answer.

    Raises
    ------
    LayoutError
        QEMU has no memory there.
    """
    match = _HVA.fullmatch(text)
    if match is None:
        said = " ".join(text[:_MAX_TEXT].split())
        raise LayoutError(f"{path}: {host_address_line(address)}: {said}", address=address)
    return int(match[1], 16)


def demand_contiguous(path: str, start: int, size: int, begin: int, last: int) -> None:
    """Check that a block is in one piece, by the host addresses of its first and its last byte.

    Raises
    ------
    LayoutError
        It is not.
    """
    if last - begin != size - 1:
        raise LayoutError(f"{path}: the block at {start:#x} is not contiguous in QEMU", address=start)
