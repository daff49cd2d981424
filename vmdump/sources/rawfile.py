"""Raw RAM files: the guest's memory, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from operator import attrgetter
from typing import Self

from vmdump.arch import arch_by_name
from vmdump.errors import CapabilityError, RequestError, SourceError
from vmdump.guest.blocks import check_blocks
from vmdump.guest.files import GuestFile
from vmdump.guest.linux.found import FoundVmcoreinfo
from vmdump.sources.base import StillSource
from vmdump.sources.raw.machines import may_be_elsewhere
from vmdump.sources.raw.places import RawPart, lay_out, place
from vmdump.sources.spec import check_options, split_options
from vmdump.units import parse_ranges, parse_size

__all__ = ["RawPart", "RawSource"]

_SCHEME = "raw:"
_PLACES = ("base", "blocks", "machine", "max_ram_below_4g")


class RawSource(StillSource):
    """A guest whose memory is whole files.

    Parameters
    ----------
    path : str, path, or sequence of str, path or RawPart
        A regular file or block device; its holes are never read. Of several, each continues the one in front
        of it, as QEMU's NUMA nodes do; those with places of their own are `RawPart`.
    base : int, optional
        Guest-physical address of the first byte; 0, if nothing says where the memory is. Then a file that may
        lie elsewhere is refused.
    blocks : sequence of (int, int), optional
        Guest-physical ranges ``[begin, end)`` that consecutive bytes go to; together as many bytes as there
        are.
    machine : str, optional
        QEMU's machine whose whole RAM this is, and by whose rules it lies: ``q35``, ``pc-i440fx-7.2``.
    max_ram_below_4g : int, optional
        The property of the machine, in bytes, where it was set.
    arch : str
        The guest's architecture.
    page_size : int, optional
        The dump's block size in bytes; see :class:`vmdump.guest.guest.Guest`.
    cpus : sequence of mapping of str to int, optional
        The registers of each vCPU; see :class:`vmdump.guest.guest.Guest`.

    Raises
    ------
    SourceError
        A file is missing, unreadable or empty.
    LayoutError
        A size is not a multiple of 4096, or not that of `blocks`; blocks overlap; the page size is wrong. Or
        nothing says where the memory is, and it may have a hole, or its kernel or a QEMU that has it mapped
        say that it is not at 0: `layouts` and `confirmed` tell where it may be.
    RequestError
        The architecture or the machine is not known, several places are given, or `cpus` are wrong.
    """

    format = "raw"

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | RawPart],
        *,
        base: int | None = None,
        blocks: Sequence[tuple[int, int]] | None = None,
        machine: str | None = None,
        max_ram_below_4g: int | None = None,
        arch: str = "x86_64",
        page_size: int | None = None,
        cpus: Sequence[Mapping[str, int]] | None = None,
    ) -> None:
        known_arch = arch_by_name(arch)
        parts = _parts(path, RawPart(("",), base, blocks, machine, max_ram_below_4g))
        self.is_placed = len(parts) > 1 or parts[0].is_placed
        self.files: tuple[GuestFile, ...] = ()
        self._asked: set[bytes] = set()
        try:
            found = []
            for part in parts:
                files = [self._open(name) for name in part.paths]
                found += place(lay_out(part, files, arch), files)
            found = sorted(found, key=attrgetter("start"))
            super().__init__(check_blocks(found), known_arch, page_size=page_size, cpus=cpus)
            if not self.is_placed and may_be_elsewhere(arch, self.size):
                from vmdump.sources.raw.doubt import check_place  # few files are so large

                check_place(self, self.files)
        except BaseException:
            self.close()
            raise

    @classmethod
    def by_names(cls, names: Sequence[str | os.PathLike[str]]) -> Self:
        """Open raw files of one guest, each named ``raw:PATH?base=...``; also ``blocks=`` or ``machine=``.

        Where the memory is, is said with each file; one that does not say continues the one in front of it.
        ``arch`` and ``page_size`` are said with any of them.

        Raises
        ------
        RequestError
            One of them is not a raw file, they contradict each other, or an option is not known or not a
            number.
        CapabilityError
            No address is named, and the file is of a kind that is not memory.
        VmdumpError
            As for :class:`RawSource`.
        """
        parts: list[RawPart] = []
        common: dict[str, str] = {}
        for path, options in map(_split_name, names):
            check_options(options, (*_PLACES, "arch", "page_size"), "raw")
            for name in ("arch", "page_size"):
                if name in options and common.setdefault(name, options[name]) != options[name]:
                    raise RequestError(
                        f"{name}: the files say {common[name]} and {options[name]}", parameter=name
                    )
            if not parts and options.keys().isdisjoint(("base", "blocks")):
                _check_kind(path)
            if parts and not any(name in options for name in _PLACES):
                parts[-1] = _with_paths(parts[-1], (*parts[-1].paths, path))
            else:
                parts.append(_part(path, options))
        page_size = common.get("page_size")
        return cls(
            parts,
            arch=common.get("arch", "x86_64"),
            page_size=None if page_size is None else parse_size(page_size, parameter="page_size"),
        )

    def _open(self, path: str | os.PathLike[str]) -> GuestFile:
        file = GuestFile(path)
        self.files = (*self.files, file)
        if file.size == 0:
            raise SourceError("the file is empty", path=file.path)
        return file

    def with_vmcoreinfo(self, text: bytes, *, found: FoundVmcoreinfo | None = None) -> Self:
        """Give the same guest with another VMCOREINFO.

        Raises
        ------
        LayoutError
            Nothing said where the memory is, and the page tables of this kernel say that it is elsewhere.
        """
        other = super().with_vmcoreinfo(text, found=found)
        if not self.is_placed and text not in self._asked:
            from vmdump.sources.raw.doubt import MAX_KERNELS, check_kernel

            # A search tries all that looks like VMCOREINFO, and hostile memory may be nothing else.
            if len(self._asked) < MAX_KERNELS:
                check_kernel(other, self.files)
                self._asked.add(text)
        return other

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


def _parts(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | RawPart], placed: RawPart
) -> list[RawPart]:
    """Give the parts of a source; plain paths continue what is in front of them."""
    names = [path] if isinstance(path, str | os.PathLike) else path
    parts: list[RawPart] = []
    for name in names:
        if isinstance(name, RawPart):
            if placed.is_placed:
                raise RequestError("source: its parts say where they are", parameter="source")
            parts.append(name)
        elif parts:
            parts[-1] = _with_paths(parts[-1], (*parts[-1].paths, name))
        else:
            parts.append(_with_paths(placed, (name,)))
    if not parts:
        raise RequestError("source: no file is named", parameter="source")
    return parts


def _with_paths(part: RawPart, paths: Sequence[str | os.PathLike[str]]) -> RawPart:
    return RawPart(paths, part.base, part.blocks, part.machine, part.max_ram_below_4g)


def _check_kind(path: str) -> None:
    """Refuse a file of a known kind: its bytes would be taken for memory, and nothing would tell.

    At address 0 no machine has what these files begin with. Memory from elsewhere may begin with anything.
    """
    from vmdump.formats.foreign import (
        HEAD,
        TAIL,
        read_kind,
        recognise,
    )  # 1 ms that a live guest does not need

    with closing(GuestFile(path)) as file:
        try:
            head = os.pread(file.fd, HEAD, 0)
            tail = os.pread(file.fd, TAIL, max(file.size - TAIL, 0))
        except OSError:
            return  # whoever reads the memory will say so
    known = read_kind(head)
    if known is not None:
        raise CapabilityError(f"{path}: this is {known}, not raw memory; name it without 'raw:'")
    kind = recognise(head, tail, texts=False)
    if kind is not None:
        raise CapabilityError(f"{path}: this is {kind.name}, not raw memory; {kind.advice(path)}")


def _split_name(given: str | os.PathLike[str]) -> tuple[str, dict[str, str]]:
    name = os.fspath(given)
    if not name.startswith(_SCHEME):
        raise RequestError(f"source: {name} is not raw:PATH, as the others are", parameter="source")
    return split_options(name.removeprefix(_SCHEME))


def _part(path: str, options: dict[str, str]) -> RawPart:
    def size(name: str) -> int | None:
        return parse_size(options[name], parameter=name) if name in options else None

    return RawPart(
        (path,),
        base=size("base"),
        blocks=parse_ranges(options["blocks"], parameter="blocks") if "blocks" in options else None,
        machine=options.get("machine"),
        max_ram_below_4g=size("max_ram_below_4g"),
    )
