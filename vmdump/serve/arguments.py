"""What a client asks of a dump, if vmdump makes it; what QEMU would refuse is left to QEMU to refuse."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Any

from vmdump.formats.names import FORMATS

__all__ = ["DumpArguments", "is_refused", "left_to_qemu", "may_be_taken", "parse_line", "parse_request"]

_TYPES: dict[str, type] = {
    "paging": bool,
    "protocol": str,
    "detach": bool,
    "begin": int,
    "length": int,
    "format": str,
}
_NEEDED = ("paging", "protocol")
_OWN = ("/dev/fd", "/dev/std", "/proc/self", "/proc/thread-self")
"""Names that mean another file to each process; /dev/fdset is QEMU's alone."""
_MAX_NUMBER = 1 << 63
_FORMATS = {known.name: known for known in FORMATS}

# As QEMU reads its command line: the letters in this order, then a name, then numbers. All else is QEMU's to
# read: it may be a sum, or wrong.
_LINE = re.compile(
    r"""\s*dump-guest-memory(?P<paging>\s+-p)?(?P<detach>\s+-d)?
    (?P<zlib>\s+-z)?(?P<lzo>\s+-l)?(?P<snappy>\s+-s)?(?P<raw>\s+-R)?
    \s+(?:"(?P<quoted>(?:[^"\\]|\\[nr\\'"])*)"|(?P<name>[^\s"-]\S*))
    (?:\s+(?P<begin>0[xX][0-9a-fA-F]+|[0-9]+)(?:\s+(?P<length>0[xX][0-9a-fA-F]+|[0-9]+))?)?\s*""",
    re.VERBOSE | re.ASCII,
)
_ESCAPES = {"n": "\n", "r": "\r"}


@dataclass(frozen=True)
class DumpArguments:
    """The arguments of ``dump-guest-memory``.

    Attributes
    ----------
    paging, detach : bool
        As QEMU has them.
    protocol : str
        ``file:PATH`` or ``fd:NAME``.
    format : str
        A name that vmdump knows.
    begin, length : int or None
        Both, or none.
    """

    paging: bool
    protocol: str
    detach: bool = False
    format: str = "elf"
    begin: int | None = None
    length: int | None = None

    @property
    def path(self) -> str:
        """The file; empty for a descriptor."""
        return self.protocol.removeprefix("file:") if self.protocol.startswith("file:") else ""

    @property
    def descriptor(self) -> str | None:
        """The descriptor's name; None for a file."""
        return self.protocol.removeprefix("fd:") if self.protocol.startswith("fd:") else None


def parse_request(arguments: dict[str, Any]) -> DumpArguments | None:
    """Read the arguments of the QMP command; None if QEMU would not take their names or types."""
    if not (set(_NEEDED) <= arguments.keys() <= _TYPES.keys()):
        return None
    for name, value in arguments.items():
        if type(value) is not _TYPES[name]:
            return None
        if isinstance(value, int) and not -_MAX_NUMBER <= value < _MAX_NUMBER:
            return None
    if arguments.get("format", "elf") not in _FORMATS:
        return None
    return DumpArguments(**arguments)


def may_be_taken(arguments: dict[str, Any]) -> bool:
    """Tell whether some QEMU may take arguments that are none for vmdump: one may know more of them."""
    wrong = (
        name in arguments
        and (
            type(arguments[name]) is not kind
            or (kind is int and not -_MAX_NUMBER <= arguments[name] < _MAX_NUMBER)
        )
        for name, kind in _TYPES.items()
    )
    return set(_NEEDED) <= arguments.keys() and not any(wrong)


def parse_line(line: str) -> DumpArguments | None:
    """Read the command line of the human monitor's command; None if that is for QEMU to read."""
    match = _LINE.fullmatch(line)
    codecs = [] if match is None else [codec for codec in ("zlib", "lzo", "snappy") if match[codec]]
    if match is None or len(codecs) > 1:
        return None
    name = match["name"]
    if name is None:
        name = re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), match["quoted"])
    raw = "raw-" if match["raw"] else ""
    made = DumpArguments(
        paging=bool(match["paging"]),
        protocol=f"file:{name}",
        detach=bool(match["detach"]),
        format=f"kdump-{raw}{codecs[0]}" if codecs else "elf",
        begin=_number(match["begin"]),
        length=_number(match["length"]),
    )
    numbers = (made.begin or 0, made.length or 0)
    return made if max(numbers) < _MAX_NUMBER else None


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    # As in C: a zero in front makes it octal.
    if text.startswith("0") and text.isdigit():
        return int(text, 8) if re.fullmatch("[0-7]+", text) else _MAX_NUMBER
    return int(text, 0)


def is_refused(arguments: DumpArguments) -> bool:
    """Tell whether QEMU refuses it before it begins a dump, whatever the guest is."""
    return _contradicts(arguments) or _is_empty(arguments)


def _contradicts(arguments: DumpArguments) -> bool:
    has_range = arguments.begin is not None or arguments.length is not None
    return (
        (_FORMATS[arguments.format].family == "kdump" and (arguments.paging or has_range))
        or (arguments.begin is None) != (arguments.length is None)
        or (arguments.length or 0) < 0
        or (arguments.descriptor is None and not arguments.path)
    )


def _is_empty(arguments: DumpArguments) -> bool:
    return (arguments.begin or 0) < 0 or arguments.length == 0


def left_to_qemu(arguments: DumpArguments) -> DumpArguments | None:
    """Give what to ask QEMU, which refuses this or has to open the file; None if vmdump may make the dump.

    Where it refuses, a format that it may not know becomes one that it knows: it is to say what is wrong.
    """
    if _contradicts(arguments):
        is_kdump = _FORMATS[arguments.format].family == "kdump"
        return replace(arguments, format="kdump-zlib") if is_kdump else arguments
    if _is_empty(arguments):
        # QEMU empties the file before it looks at the numbers.
        there = os.path.isfile(arguments.path)
        return replace(arguments, protocol="file:/dev/null") if there else arguments
    if "\0" in arguments.protocol or os.path.normpath(arguments.path).startswith(_OWN):
        return arguments
    return None
