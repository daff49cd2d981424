"""The names of dump formats: QEMU's, plus zstd."""

from __future__ import annotations

from typing import Literal, NamedTuple

from vmdump.errors import RequestError
from vmdump.formats.kdump import CODEC_FLAGS
from vmdump.suggestions import is_it

__all__ = [
    "DEFAULT_FORMAT",
    "FORMATS",
    "LAYOUTS",
    "DumpFormat",
    "Family",
    "Format",
    "Layout",
    "find_format",
    "find_layout",
]

Family = Literal["elf", "kdump"]
Format = Literal[
    "elf",
    "kdump-zlib",
    "kdump-lzo",
    "kdump-snappy",
    "kdump-zstd",
    "kdump-raw-zlib",
    "kdump-raw-lzo",
    "kdump-raw-snappy",
    "kdump-raw-zstd",
]
"""The names of all formats, for type checkers."""
Layout = Literal["auto", "standard", "flattened"]
"""Those of a kdump file's layouts."""
LAYOUTS: tuple[Layout, ...] = ("auto", "standard", "flattened")


class DumpFormat(NamedTuple):
    """A format as the user names it.

    Attributes
    ----------
    name : str
        ``elf``, ``kdump-CODEC`` or ``kdump-raw-CODEC``.
    family : {"elf", "kdump"}
        What kind of file it is.
    codec : str or None
        The codec of a kdump file; None for ELF.
    raw : bool
        True for QEMU's ``kdump-raw-*``, which demand the standard layout.
    """

    name: str
    family: Family
    codec: str | None = None
    raw: bool = False


DEFAULT_FORMAT = "kdump-zlib"
FORMATS: tuple[DumpFormat, ...] = (
    DumpFormat("elf", "elf"),
    *(DumpFormat(f"kdump-{codec}", "kdump", codec) for codec in CODEC_FLAGS),
    *(DumpFormat(f"kdump-raw-{codec}", "kdump", codec, raw=True) for codec in CODEC_FLAGS),
)


def find_format(name: str) -> DumpFormat:
    """Find a format by name; the codec's name alone stands for ``kdump-CODEC``.

    Raises
    ------
    RequestError
        No format has that name.
    """
    for known in FORMATS:
        if name in (known.name, known.codec if not known.raw else None):
            return known
    names = [known.name for known in FORMATS]
    raise RequestError(
        f"format: {name!r} is not known{is_it(name, [*names, *CODEC_FLAGS])}; there are {', '.join(names)}",
        parameter="format",
    )


def find_layout(name: str, dump_format: DumpFormat) -> Layout:
    """Find the layout that is asked for, by its own name or by the format's.

    Raises
    ------
    RequestError
        The name is not known, or contradicts the format.
    """
    for known in LAYOUTS:
        if known == name:
            break
    else:
        raise RequestError(
            f"layout: {name!r} is not known{is_it(name, LAYOUTS)}; there are {', '.join(LAYOUTS)}",
            parameter="layout",
        )
    if known == "flattened" and dump_format.family == "elf":
        raise RequestError("layout: ELF has no flattened layout", parameter="layout")
    if dump_format.raw:
        if known == "flattened":
            raise RequestError(f"layout: {dump_format.name} demands the standard layout", parameter="layout")
        return "standard"
    return known
