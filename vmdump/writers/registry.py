"""Which writer makes the dump that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmdump.errors import RequestError
from vmdump.formats.names import DumpFormat, Family, Layout, find_format, find_layout
from vmdump.writers.base import Writer

__all__ = ["make_writer"]


def make_writer(
    format: str,
    *,
    layout: str = "auto",
    engine: str | None = None,
    level: int | None = None,
    begin: int | None = None,
    length: int | None = None,
    paging: bool = False,
    compat: str | None = None,
    pause: bool = True,
    vmcoreinfo: bool = False,
    filters: bool = False,
) -> Writer:
    """Make the writer of a format, with its options.

    Parameters
    ----------
    format, layout, engine, level, begin, length, paging, compat
        As for :func:`vmdump.dump`.
    pause, vmcoreinfo, filters : bool
        The guest is to be paused, VMCOREINFO is given, types of pages are excluded: not all files can be of
        such a guest.

    Raises
    ------
    RequestError
        The options contradict each other, or the format.
    EngineUnavailable
        This build has no such engine.
    """
    dump_format = find_format(format)
    wanted_layout = find_layout(layout, dump_format)
    within = _range(dump_format, begin, length, paging=paging)
    if dump_format.codec is None and (engine is not None or level is not None):
        name = "level" if engine is None else "engine"
        raise RequestError(f"{name}: an {dump_format.name} file is not compressed", parameter=name)
    if compat is not None:
        from vmdump.writers.compat.target import check_compat

        check_compat(
            compat,
            dump_format,
            engine=engine,
            level=level,
            pause=pause,
            vmcoreinfo=vmcoreinfo,
            filters=filters,
        )
    make = (_WRITERS if compat is None else _COMPAT_WRITERS)[dump_format.family]
    return make(_Options(dump_format.codec or "", wanted_layout, engine, level, within, paging))


class _Options(NamedTuple):
    """What the writers of a family are made from."""

    codec: str
    layout: Layout
    engine: str | None
    level: int | None
    within: tuple[int, int] | None
    paging: bool


# A start takes longer with each writer that is loaded, and needs one.
def _elf(options: _Options) -> Writer:
    from vmdump.writers.elf import ElfWriter
    from vmdump.writers.loads import Selection

    return ElfWriter(Selection(options.within, options.paging))


def _kdump(options: _Options) -> Writer:
    from vmdump.writers.kdump import KdumpWriter

    return KdumpWriter(options.codec, layout=options.layout, engine=options.engine, level=options.level)


def _compat_elf(options: _Options) -> Writer:
    from vmdump.writers.compat.elf import CompatElfWriter
    from vmdump.writers.loads import Selection

    return CompatElfWriter(Selection(options.within, options.paging))


def _compat_kdump(options: _Options) -> Writer:
    from vmdump.writers.compat.kdump import CompatKdumpWriter

    return CompatKdumpWriter(layout=options.layout)


_WRITERS: dict[Family, Callable[[_Options], Writer]] = {"elf": _elf, "kdump": _kdump}
_COMPAT_WRITERS: dict[Family, Callable[[_Options], Writer]] = {"elf": _compat_elf, "kdump": _compat_kdump}


def _range(
    dump_format: DumpFormat, begin: int | None, length: int | None, *, paging: bool
) -> tuple[int, int] | None:
    """Give the first address that is dumped, and the bytes; None for the whole guest."""
    if dump_format.family != "elf" and (paging or begin is not None or length is not None):
        raise RequestError(
            f"format: {dump_format.name} holds the whole guest, so paging, begin and length go with elf only",
            parameter="format",
        )
    if begin is None and length is None:
        return None
    if begin is None:
        raise RequestError("begin: is missing, length needs it", parameter="begin")
    if length is None:
        raise RequestError("length: is missing, begin needs it", parameter="length")
    return begin, length
