"""Sizes, addresses, ranges and numbers of things, as people write them and as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from vmdump.errors import RequestError

__all__ = [
    "ADDRESS_LIMIT",
    "align_up",
    "counted",
    "format_size",
    "is_power_of_two",
    "merge_runs",
    "parse_ranges",
    "parse_size",
]

ADDRESS_LIMIT = 1 << 64
"""Guest-physical addresses are below this."""

_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]{1,40}|[0-9]{1,40})(?:([KMGTP])(?:iB|B)?)?", re.IGNORECASE)


def parse_size(text: str, *, parameter: str = "size") -> int:
    """Read a size or an address: decimal or 0x, with K, M, G, T or P as powers of 1024.

    Parameters
    ----------
    text : str
        For example ``4096``, ``0x1000``, ``64K``, ``4G``, ``4GiB``.
    parameter : str
        Named in the error.

    Returns
    -------
    int
        Bytes, ``0 <= n <= ADDRESS_LIMIT``.

    Raises
    ------
    RequestError
        The text is not such a number, or the number has more than 64 bits.

    Examples
    --------
    >>> parse_size("0x10K")
    16384
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise RequestError(
            f"{parameter}: {text!r} is not a size; write 4096, 0x1000, 64K, 512M, 4G or 1T",
            parameter=parameter,
        )
    number = int(match[1], 0) if match[1][:2].lower() == "0x" else int(match[1])
    value = number << _SUFFIXES[(match[2] or "").upper()]
    if value > ADDRESS_LIMIT:
        raise RequestError(f"{parameter}: {text} does not fit into 64 bits", parameter=parameter)
    return value


def parse_ranges(text: str, *, parameter: str = "ranges") -> list[tuple[int, int]]:
    """Read ranges ``BEGIN-END,BEGIN-END,...``; numbers as for :func:`parse_size`, the end is exclusive.

    Raises
    ------
    RequestError
        A part is not such a range, or is empty.

    Examples
    --------
    >>> parse_ranges("0-2G,0x100000000-5G")
    [(0, 2147483648), (4294967296, 5368709120)]
    """
    ranges = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not dash:
            raise RequestError(
                f"{parameter}: {part!r} is not a range; write BEGIN-END,..., as 0-2G,4G-5G",
                parameter=parameter,
            )
        begin, end = parse_size(first, parameter=parameter), parse_size(last, parameter=parameter)
        if begin >= end:
            raise RequestError(f"{parameter}: {part} ends where it begins, or before", parameter=parameter)
        ranges.append((begin, end))
    return ranges


def format_size(size: int) -> str:
    """Write a number of bytes for people, with binary units.

    Examples
    --------
    >>> format_size(1536)
    '1.5 KiB'
    """
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


def align_up(value: int, unit: int) -> int:
    """Round `value` up to a multiple of `unit`.

    Examples
    --------
    >>> align_up(5, 4)
    8
    """
    return -(-value // unit) * unit


def counted(count: int, singular: str, plural: str = "") -> str:
    """Write how many there are of something; its plural ends with an s, if not given.

    Examples
    --------
    >>> counted(1, "page"), counted(2, "page"), counted(0, "page differs", "pages differ")
    ('1 page', '2 pages', '0 pages differ')
    """
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def is_power_of_two(value: int) -> bool:
    """Tell whether `value` is a power of two.

    Examples
    --------
    >>> is_power_of_two(4096), is_power_of_two(0)
    (True, False)
    """
    return value > 0 and value & (value - 1) == 0


def merge_runs(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join runs that touch or overlap.

    Parameters
    ----------
    runs : iterable of (int, int)
        ``[begin, end)``, by ascending begin.

    Examples
    --------
    >>> list(merge_runs([(0, 2), (2, 5), (7, 8)]))
    [(0, 5), (7, 8)]
    """
    pending: tuple[int, int] | None = None
    for begin, end in runs:
        if pending is not None and begin <= pending[1]:
            pending = pending[0], max(end, pending[1])
            continue
        if pending is not None:
            yield pending
        pending = begin, end
    if pending is not None:
        yield pending
