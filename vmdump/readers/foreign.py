"""Refuse files of kinds that are not read: what they are, and what makes a dump of them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np

from vmdump.errors import CapabilityError, FormatError, VmdumpError
from vmdump.formats.foreign import HEAD, TAIL, is_text, recognise
from vmdump.readers.bytes.file import ByteFile

__all__ = ["refusal"]

_ZEROS_READ = 16 << 20
"""Bytes of a file that are looked at to say that all are zero."""


def refusal(file: ByteFile, kinds: Sequence[str]) -> VmdumpError:
    """Make the error for a file that no reader takes.

    Parameters
    ----------
    file : ByteFile
        That is refused.
    kinds : sequence of str
        What is read.
    """
    read = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    head = file.read(0, min(HEAD, file.size))
    tail_size = min(TAIL, file.size)
    kind = recognise(head, file.read(file.size - tail_size, tail_size))
    if kind is not None:
        return CapabilityError(
            f"{file.path}: this is {kind.name}, which vmdump does not read; {kind.advice(file.path)}"
        )
    if not file.size:
        return FormatError("the file is empty", path=file.path)
    if _only_zeros(file):
        return FormatError("the file holds nothing but zeros", path=file.path)
    if is_text(head):
        return FormatError(f"this is a text file, not a dump ({read})", path=file.path)
    return FormatError(
        f"not a dump ({read}), and of no other kind that is known by its first bytes; raw "
        f"memory is written {shlex.quote(f'raw:{file.path}')}",
        path=file.path,
    )


def _only_zeros(file: ByteFile) -> bool:
    """Tell whether a file has no data: only holes, or zeros that were written."""
    memory = file.memory(0, file.size, file.size)
    seen = 0
    scratch = np.empty(1 << 20, np.uint8)
    for begin, end in memory.extents():
        for at in range(begin, end, scratch.size):
            seen += scratch.size
            if seen > _ZEROS_READ or memory.view(at, min(scratch.size, end - at), scratch).any():
                return False
    return True
