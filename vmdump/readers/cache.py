"""What was read last is kept, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

__all__ = ["BytesCache"]


class BytesCache:
    """Pieces of bytes by key; those used longest ago go first. For several threads.

    Parameters
    ----------
    budget : int
        Bytes of all pieces together.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held = 0
        self._pieces: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> bytes | None:
        """Give a piece, or None if it is not kept."""
        with self._lock:
            piece = self._pieces.get(key)
            if piece is not None:
                self._pieces.move_to_end(key)
            return piece

    def put(self, key: Hashable, piece: bytes) -> None:
        """Keep a piece, which must be what any other thread would put under this key."""
        with self._lock:
            self._held += len(piece) - len(self._pieces.get(key, b""))
            self._pieces[key] = piece
            while self._held > self._budget:
                self._held -= len(self._pieces.popitem(last=False)[1])

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._pieces.clear()
            self._held = 0
