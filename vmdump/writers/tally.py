"""What a writer counted."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

__all__ = ["Tally"]


@dataclass
class Tally:
    """Counts of one dump, by the names that they have in its report.

    Attributes
    ----------
    output_bytes : int
        Bytes of the output, holes included.
    zero_pages, plain_pages, compressed_pages : int
        Pages of a kdump file by kind; zero pages include those in holes.
    copied_pages : int
        Pages of a kdump file that were copied as they are stored in the source.
    excluded_pages : int
        Pages that are not in the dump: the source excludes them, or they were unreadable.
    partial_pages : int
        Pages of a kdump file of which the guest has only a part, excluded ones included.
    changed_pages : int
        Pages packed during the pause, because they had changed since they were packed ahead.
    hole_bytes : int
        Guest memory that was known to be zero and not read, in bytes.
    """

    output_bytes: int = 0
    zero_pages: int = 0
    plain_pages: int = 0
    compressed_pages: int = 0
    copied_pages: int = 0
    excluded_pages: int = 0
    partial_pages: int = 0
    changed_pages: int = 0
    hole_bytes: int = 0

    def __iadd__(self, other: Tally) -> Self:
        """Count another file in."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self
