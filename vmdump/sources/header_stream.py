"""The headers at the start of a dump that somebody else writes into a pipe."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from vmdump.errors import Cancelled, FormatError

__all__ = ["HeaderStream"]

_POLL_MS = 20
_HEADERS_WAIT = 120.0
"""Seconds."""
_MAX_HEADERS = 128 << 20
"""Bytes: 65533 blocks need 4 MiB of program headers, 4096 vCPUs some 16 MiB of notes."""


class HeaderStream:
    """The first bytes of what is written to a pipe, by offset.

    Parameters
    ----------
    fd : int
        The end that is read; stays the caller's. It may block or not.
    name : str
        Named in errors.
    ended : callable
        Tells whether the writer has ended: what is not in the pipe then does not come.
    cancelled : callable
        Asked while waiting.

    Attributes
    ----------
    at_end : bool
        Nothing more comes.
    """

    def __init__(self, fd: int, name: str, ended: Callable[[], bool], cancelled: Callable[[], bool]) -> None:
        self._fd = fd
        self._name = name
        self._ended = ended
        self._cancelled = cancelled
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._data = bytearray()
        self.at_end = False
        self._deadline = time.monotonic() + _HEADERS_WAIT

    @property
    def began(self) -> bool:
        """Whether anything was written."""
        return bool(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """Give bytes of the dump.

        Parameters
        ----------
        offset, length : int
            Of the bytes.

        Raises
        ------
        FormatError
            Fewer are written, or they are more than any headers have.
        Cancelled
            `cancelled` returned true.
        """
        if offset + length > _MAX_HEADERS:
            raise FormatError("headers and notes are too large", path=self._name, offset=offset)
        while len(self._data) < offset + length:
            # The writer may hold the other end open as well while it has not yet taken it for the dump.
            ended = self._ended()
            if self._poll.poll(0 if ended else _POLL_MS):
                part = os.read(self._fd, 1 << 16)
            elif ended or time.monotonic() > self._deadline:
                part = b""
            elif self._cancelled():
                raise Cancelled("cancelled while waiting for QEMU")
            else:
                continue
            self.at_end = not part
            if not part:
                raise FormatError("QEMU's dump ends within its headers", path=self._name, offset=offset)
            self._data += part
        return bytes(self._data[offset : offset + length])
