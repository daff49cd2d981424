"""What a process has resident, mapping by mapping: counted, not estimated as in VmRSS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def resident(pid: int) -> Iterator[tuple[int, int, int]]:
    """Begin and end of each mapping of a process, and how many bytes of it are resident."""
    begin = end = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        word, *rest = line.split()
        if not word.endswith(":"):
            begin, end = (int(bound, 16) for bound in word.split("-"))
        elif word == "Rss:":
            yield begin, end, int(rest[0]) * 1024
