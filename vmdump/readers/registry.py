"""The kinds of dumps that are read, and how a file is recognised as one of them.

A new kind is one file here, with a `Dump` that is made of `Contents`, and one line of `KINDS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, cast

from vmdump.arch import ARCHES, Arch, arch_by_name
from vmdump.errors import FormatError, RequestError
from vmdump.formats import flattened, kdump, lime
from vmdump.formats.elf import ELFMAG
from vmdump.readers.bytes.file import BufferBytes, ByteFile, PlainBytes, RawBytes, naming_file
from vmdump.readers.contents import Contents
from vmdump.readers.dump import Dump

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vmdump.readers.checking import Checking

    Reader = Callable[[Contents], Dump]
    Files = str | os.PathLike[str] | Buffer | Sequence[str | os.PathLike[str]]

__all__ = ["KINDS", "Files", "Kind", "open_dump"]

_HEAD = 16
"""Bytes that a probe is given."""


class Kind(NamedTuple):
    """A kind of dump.

    Attributes
    ----------
    name : str
        What messages call it.
    signatures : tuple of bytes
        It begins with one of these.
    reader, salvage : str
        ``module.Class`` in this package, of a whole file and of a damaged one: a `Dump` that is made of
        `Contents`. Loaded when it is needed, which takes up to 5 ms for each.
    tells_arch : bool
        The file tells the guest's architecture; else the user may.
    flattened : bool
        It may be flattened.
    split : bool
        It may be a set of files.
    probe : callable or None
        ``(head, file) -> bool``: asked of a file with the signature, where that does not tell enough.
    """

    name: str
    signatures: tuple[bytes, ...]
    reader: str
    salvage: str
    tells_arch: bool = True
    flattened: bool = False
    split: bool = False
    probe: Callable[[bytes, ByteFile], bool] | None = None

    def matches(self, head: bytes, file: ByteFile) -> bool:
        """Tell whether a file is of this kind, by its first bytes."""
        return head.startswith(self.signatures) and (self.probe is None or self.probe(head, file))

    def load(self, *, damaged: bool) -> Reader:
        """Give the reader, or that of damaged files."""
        module, _, name = (self.salvage if damaged else self.reader).rpartition(".")
        reader: Reader = getattr(import_module(f"{__package__}.{module}"), name)
        return reader


KINDS: tuple[Kind, ...] = (
    Kind("ELF core", (ELFMAG,), "elf.ElfDump", "salvage.elf.SalvagedElf", flattened=True),
    Kind(
        "kdump",
        (kdump.SIGNATURE,),
        "kdump.KdumpDump",
        "salvage.kdump.SalvagedKdump",
        flattened=True,
        split=True,
    ),
    Kind("LiME", (lime.LIME_SIGNATURE,), "lime.LimeDump", "salvage.lime.SalvagedLime", tells_arch=False),
    Kind("AVML", (lime.AVML_SIGNATURE,), "avml.AvmlDump", "salvage.avml.SalvagedAvml", tells_arch=False),
)
"""In the order in which they are tried."""


def open_dump(
    source: Files, *, arch: str | None = None, damaged: bool = False, checking: Checking | None = None
) -> Dump:
    """Open a dump of any kind that vmdump reads.

    Parameters
    ----------
    source : str, path, buffer, or sequence of str or path
        A file, its contents, or all parts of a split set.
    arch : str, optional
        The guest's architecture, for LiME and AVML files, which do not tell; x86_64, if not given.
    damaged : bool
        Take what is left of a dump that was cut short or has lost parts: all else is excluded.
    checking : Checking, optional
        For a damaged dump: also exclude what does not unpack, which takes reading all of it.

    Returns
    -------
    Dump
        To be closed by the caller.

    Raises
    ------
    SourceError
        The file is missing or unreadable.
    FormatError, LayoutError
        It is not such a file, or damaged.
    CapabilityError
        It is of a kind that is not read: compressed as a whole, a saved state, a disk, the core of a process;
        or a split set that lacks a part.
    RequestError
        The architecture is not known, or the file tells its own.
    """
    given = None if arch is None else arch_by_name(arch)
    with ExitStack() as opened:
        if isinstance(source, list | tuple) and len(source) != 1:
            _refuse(given, "a kdump file names its own")
            dump = _open_set(source, opened, damaged, checking)
        else:
            one = source[0] if isinstance(source, list | tuple) else source
            raw: RawBytes
            if isinstance(one, str | os.PathLike):
                raw = PlainBytes(one)
            else:
                raw = BufferBytes(cast("Buffer", one))
            opened.callback(raw.close)
            with naming_file(raw.path):
                dump = _open_one(raw, given, damaged, checking)
        opened.pop_all()
        return dump


def _refuse(arch: Arch | None, why: str) -> None:
    if arch is not None:
        raise RequestError(f"arch: {why}", parameter="arch")


def _open_one(raw: RawBytes, arch: Arch | None, damaged: bool, checking: Checking | None) -> Dump:
    kind = _kind_of(raw)
    if kind is None or kind.tells_arch:
        names = " or ".join(known.name for known in KINDS if not known.tells_arch)
        _refuse(arch, f"{raw.path} is not a {names} file; others name their own")
    file, layout = _put_in_place(raw, damaged)
    if file is not raw:
        kind = _kind_of(file)
        kind = kind if kind is not None and kind.flattened else None
    if kind is None:
        from vmdump.readers.foreign import refusal  # 2 ms to load

        raise refusal(raw, [known.name for known in KINDS])
    return kind.load(damaged=damaged)(Contents([file], layout, arch or ARCHES[0], checking))


def _open_set(
    paths: Iterable[str | os.PathLike[str]], opened: ExitStack, damaged: bool, checking: Checking | None
) -> Dump:
    """Open the files of a set; damaged ones may have lost their headers, but not all of them."""
    files: list[ByteFile] = []
    layouts: set[str] = set()
    kinds: set[Kind] = set()
    for path in paths:
        raw = PlainBytes(path)
        opened.callback(raw.close)
        file, layout = _put_in_place(raw, damaged)
        kind = _kind_of(file)
        if kind is not None and kind.split:
            kinds.add(kind)
        elif not (damaged and _lost_its_head(file)):
            names = " or ".join(known.name for known in KINDS if known.split)
            raise FormatError(f"this is not a {names} file, and no other kind is split", path=raw.path)
        files.append(file)
        layouts.add(layout)
    if not files:
        raise RequestError("source: no file is named", parameter="source")
    if not kinds:
        raise FormatError("no part of the set has its headers", path=files[0].path)
    if len(kinds) > 1:
        raise FormatError("the files are of different kinds", path=files[0].path)
    layout = "standard" if layouts == {"standard"} else "flattened"
    with naming_file(files[0].path):
        return kinds.pop().load(damaged=damaged)(Contents(files, layout, ARCHES[0], checking))


def _kind_of(file: ByteFile) -> Kind | None:
    head = _head(file)
    return next((kind for kind in KINDS if kind.matches(head, file)), None)


def _put_in_place(raw: RawBytes, damaged: bool) -> tuple[ByteFile, str]:
    """Give the standard layout of a file, and the layout that it has."""
    if not _head(raw).startswith(flattened.SIGNATURE):
        return raw, "standard"
    from vmdump.readers.bytes.flattened import FlattenedBytes

    return FlattenedBytes(raw, damaged=damaged), "flattened"


def _lost_its_head(file: ByteFile) -> bool:
    """Tell whether a part of a set has lost its beginning: it reads as zeros, or the file ends in it."""
    head = _head(file)
    begins = [flattened.SIGNATURE, *(begin for kind in KINDS if kind.split for begin in kind.signatures)]
    return not any(head) or any(begin.startswith(head) for begin in begins)


def _head(file: ByteFile) -> bytes:
    return file.read(0, min(_HEAD, file.size))
