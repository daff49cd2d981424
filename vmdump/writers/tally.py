"""What a writer counted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tally"]


@dataclass
class Tally:
    """Counts of one dump.

    Attributes
    ----------
    size : int
        Bytes of the output, holes included.
    zero_pages, plain_pages, compressed_pages : int
        Pages of a kdump file by kind; zero pages include those in holes.
    excluded_pages : int
        Pages of a kdump file that are marked as not in it: the host could not read them.
    changed_pages : int
        Pages packed when the guest stood still, because they had changed since all were packed while it ran.
    hole_bytes : int
        Guest memory that was known to be zero and not read, in bytes.
    """

    size: int = 0
    zero_pages: int = 0
    plain_pages: int = 0
    compressed_pages: int = 0
    excluded_pages: int = 0
    changed_pages: int = 0
    hole_bytes: int = 0
