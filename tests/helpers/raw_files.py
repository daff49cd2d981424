"""Raw memory in sparse files, and where a guest has it."""

from __future__ import annotations

from pathlib import Path

import vmdump


def sparse(path: Path, size: int, pages: dict[int, bytes] | None = None) -> Path:
    """Make a file of this size with some pages in it, by offset."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in (pages or {}).items():
            file.seek(offset)
            file.write(data)
    return path


def ranges(guest: vmdump.Source) -> list[tuple[int, int]]:
    """The guest-physical ranges of its blocks."""
    return [(block.start, block.end) for block in guest.blocks]
