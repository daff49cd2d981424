"""Find out what kind of dump a file is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

from vmdump.arch import ARCHES, Arch, arch_by_name
from vmdump.errors import FormatError, RequestError
from vmdump.formats import flattened, kdump, lime
from vmdump.formats.elf import ELFMAG
from vmdump.readers.avml import AvmlDump
from vmdump.readers.bytes.file import BufferBytes, ByteFile, PlainBytes, RawBytes, naming_file
from vmdump.readers.bytes.flattened import FlattenedBytes
from vmdump.readers.dump import Dump
from vmdump.readers.elf import ElfDump
from vmdump.readers.foreign import refusal
from vmdump.readers.kdump import KdumpDump
from vmdump.readers.lime import LimeDump
from vmdump.readers.raw import RawDump
from vmdump.readers.salvage import SalvagedBytes, SalvagedKdump, has_headers
from vmdump.readers.salvage_ranges import SalvagedAvml, SalvagedLime
from vmdump.sources.rawfile import open_raw, open_raws
from vmdump.sources.spec import check_options, split_options

if TYPE_CHECKING:
    from typing_extensions import Buffer

    AnyDump = str | os.PathLike[str] | Buffer | Sequence[str | os.PathLike[str]]

__all__ = ["AnyDump", "open_dump"]

_MAGIC = 16
_RAW = "raw:"
_WITHOUT_ARCH = ("lime", "avml")
"""Kinds of files that do not tell the guest's architecture, so that the source may."""


def open_dump(
    source: AnyDump, *, arch: str | None = None, damaged: bool = False, unpack: bool = True
) -> Dump:
    """Open a dump of any kind that vmdump reads.

    Parameters
    ----------
    source : str, path, buffer, or sequence of str or path
        A file, its contents, or all parts of a split set. Raw memory is named ``raw:PATH?base=0x0`` (several,
        if it is in several files), a LiME or AVML file of another architecture than x86_64
        ``lime:PATH?arch=aarch64`` or ``avml:...``.
    arch : str, optional
        The guest's architecture, for LiME and AVML files, which do not tell; x86_64, if not given.
    damaged : bool
        Take what is whole of a dump that was cut short or has lost parts: all else is excluded.
    unpack : bool
        Of a damaged dump, find out which pages unpack, which takes reading all of them.

    Returns
    -------
    Dump
        To be closed by the caller.

    Raises
    ------
    SourceError
        The file is missing or unreadable.
    FormatError, LayoutError
        It is no such file, or damaged.
    CapabilityError
        It is of a kind that is not read: compressed as a whole, a saved state, a disk, the core of a process;
        or a split set that lacks a part.
    RequestError
        An option is wrong.
    """
    if isinstance(source, str):
        scheme, colon, rest = source.partition(":")
        if colon and scheme in _WITHOUT_ARCH:
            source, options = split_options(rest)
            check_options(options, ("arch",), scheme)
            arch = options.get("arch", arch or ARCHES[0].name)
    given = None if arch is None else arch_by_name(arch)
    if isinstance(source, str) and source.startswith(_RAW):
        _refuse(given, "raw memory names it in its options")
        return RawDump(open_raw(*split_options(source.removeprefix(_RAW))))
    if isinstance(source, list | tuple) and any(
        isinstance(name, str) and name.startswith(_RAW) for name in source
    ):
        _refuse(given, "raw memory names it in its options")
        return RawDump(open_raws(source))
    with ExitStack() as opened:
        if isinstance(source, list | tuple) and len(source) != 1:
            _refuse(given, "a kdump file names its own")
            dump = _open_damaged_set(source, opened, unpack) if damaged else _open_set(source, opened)
        else:
            one = source[0] if isinstance(source, list | tuple) else source
            raw: RawBytes
            if isinstance(one, str | os.PathLike):
                raw = PlainBytes(one)
            else:
                raw = BufferBytes(cast("Buffer", one))
            opened.callback(raw.close)
            with naming_file(raw.path):
                dump = _open_damaged(raw, given, unpack) if damaged else _open_one(raw, given)
        opened.pop_all()
        return dump


def _refuse(arch: Arch | None, why: str) -> None:
    if arch is not None:
        raise RequestError(f"arch: {why}", parameter="arch")


def _open_one(raw: RawBytes, arch: Arch | None) -> Dump:
    magic = _magic(raw)
    for signature, reader in ((lime.LIME_SIGNATURE, LimeDump), (lime.AVML_SIGNATURE, AvmlDump)):
        if magic.startswith(signature):
            return reader(raw, arch or ARCHES[0])
    _refuse(arch, f"{raw.path} is no LiME or AVML file; others name their own")
    file, layout = _put_in_place(raw, magic)
    magic = _magic(file)
    if magic.startswith(ELFMAG):
        return ElfDump(file)
    if magic.startswith(kdump.SIGNATURE):
        return KdumpDump([file], layout)
    raise refusal(raw)


def _open_damaged(raw: RawBytes, arch: Arch | None, unpack: bool) -> Dump:
    magic = _magic(raw)
    if magic.startswith(lime.LIME_SIGNATURE):
        return SalvagedLime(raw, arch or ARCHES[0])
    if magic.startswith(lime.AVML_SIGNATURE):
        return SalvagedAvml(raw, arch or ARCHES[0], unpack=unpack)
    _refuse(arch, f"{raw.path} is no LiME or AVML file; others name their own")
    file, layout = _put_in_place(raw, magic, damaged=True)
    magic = _magic(file)
    if magic.startswith(kdump.SIGNATURE):
        return SalvagedKdump([SalvagedBytes(file)], layout, unpack=unpack)
    if magic.startswith(ELFMAG):
        return ElfDump(file, damaged=True)
    raise refusal(raw)


def _open_set(paths: Iterable[str | os.PathLike[str]], opened: ExitStack) -> Dump:
    parts, layout = _open_parts(paths, opened)
    with naming_file(parts[0].path):
        return KdumpDump(parts, layout)


def _open_damaged_set(paths: Iterable[str | os.PathLike[str]], opened: ExitStack, unpack: bool) -> Dump:
    files, layout = _open_parts(paths, opened, damaged=True)
    whole = [part for part in map(SalvagedBytes, files) if has_headers(part)]
    if not whole:
        raise FormatError("no part of the set has its headers", path=files[0].path)
    with naming_file(files[0].path):
        return SalvagedKdump(whole, layout, unpack=unpack)


def _open_parts(
    paths: Iterable[str | os.PathLike[str]], opened: ExitStack, *, damaged: bool = False
) -> tuple[list[RawBytes | FlattenedBytes], str]:
    """Open the files of a set; a damaged one may have zeros where its headers were."""
    parts: list[RawBytes | FlattenedBytes] = []
    layouts = set()
    for path in paths:
        raw = PlainBytes(path)
        opened.callback(raw.close)
        file, layout = _put_in_place(raw, _magic(raw), damaged=damaged)
        magic = _magic(file)
        cut = kdump.SIGNATURE.startswith(magic) or flattened.SIGNATURE.startswith(magic)
        lost = damaged and (cut or not any(magic))
        if not lost and not magic.startswith(kdump.SIGNATURE):
            raise FormatError("this is no kdump file, and nothing else is split", path=raw.path)
        parts.append(file)
        layouts.add(layout)
    if not parts:
        raise RequestError("source: no file is named", parameter="source")
    return parts, "standard" if layouts == {"standard"} else "flattened"


def _put_in_place(
    raw: RawBytes, magic: bytes, *, damaged: bool = False
) -> tuple[RawBytes | FlattenedBytes, str]:
    if magic.startswith(flattened.SIGNATURE):
        return FlattenedBytes(raw, damaged=damaged), "flattened"
    return raw, "standard"


def _magic(file: ByteFile) -> bytes:
    return file.read(0, min(_MAGIC, file.size))
