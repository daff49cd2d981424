"""Dumps that are named by a scheme: ``raw:PATH?machine=q35``, ``lime:PATH?arch=aarch64``, ``avml:...``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from vmdump.arch import ARCHES
from vmdump.errors import RequestError
from vmdump.readers.checking import Checking
from vmdump.readers.dump import Dump
from vmdump.readers.registry import open_dump
from vmdump.sources.spec import check_options, split_options

if TYPE_CHECKING:
    from vmdump.readers.registry import Files

__all__ = ["open_named"]

_RAW = "raw:"
_OF_ANY_ARCH = ("lime", "avml")


def open_named(
    source: Files, *, arch: str | None = None, damaged: bool = False, checking: Checking | None = None
) -> Dump:
    """Open a dump by its name; parameters and errors as of :func:`vmdump.readers.registry.open_dump`.

    Parameters
    ----------
    source : str, path, buffer, or sequence of str or path
        Raw memory is named ``raw:PATH?base=0x0`` (several, if it is in several files), a LiME or AVML file of
        another architecture than x86_64 ``lime:PATH?arch=aarch64`` or ``avml:...``.

    Raises
    ------
    RequestError
        An option is wrong.
    """
    names = source if isinstance(source, list | tuple) else [source]
    if any(isinstance(name, str) and name.startswith(_RAW) for name in names):
        if arch is not None:
            raise RequestError("arch: raw memory names it in its options", parameter="arch")
        return _open_raw(source)
    if isinstance(source, str):
        scheme, colon, rest = source.partition(":")
        if colon and scheme in _OF_ANY_ARCH:
            source, options = split_options(rest)
            check_options(options, ("arch",), scheme)
            arch = options.get("arch", arch or ARCHES[0].name)
    return open_dump(source, arch=arch, damaged=damaged, checking=checking)


def _open_raw(source: Files) -> Dump:
    from vmdump.readers.raw import RawDump
    from vmdump.sources.rawfile import open_raw, open_raws

    if isinstance(source, str):
        return RawDump(open_raw(*split_options(source.removeprefix(_RAW))))
    return RawDump(open_raws(cast("Sequence[str | os.PathLike[str]]", source)))
