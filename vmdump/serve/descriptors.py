"""Descriptors that a client has given a name: kept here for a dump, and passed on for all else.

Each client has names of its own, as each of QEMU's monitors has, and they go with it. A descriptor is in one
place only, or who waits at its other end would wait for two closings: here, until a command names it that
QEMU does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

__all__ = ["NamedDescriptors"]


class NamedDescriptors:
    """Descriptors by name."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def put(self, name: str, number: int) -> None:
        """Keep a descriptor under a name; one that had the name is closed."""
        self.forget(name)
        self._numbers[name] = number

    def take(self, name: str) -> int | None:
        """Give the descriptor of a name to the caller; None if there is none."""
        return self._numbers.pop(name, None)

    def forget(self, name: str) -> bool:
        """Close the descriptor of a name; false if there is none."""
        number = self.take(name)
        if number is not None:
            os.close(number)
        return number is not None

    def take_named(self, arguments: Any) -> dict[str, int]:
        """Give the caller those whose names occur in a command's arguments, whatever they are there."""
        if not self._numbers:
            return {}
        texts = list(_texts(arguments))
        names = [name for name in self._numbers if any(name in text for text in texts)]
        return {name: self._numbers.pop(name) for name in names}

    def close(self) -> None:
        """Close all."""
        for name in list(self._numbers):
            self.forget(name)


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
