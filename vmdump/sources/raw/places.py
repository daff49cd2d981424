"""What raw memory is given as: files, and where in guest-physical space their bytes are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from vmdump.errors import LayoutError, RequestError
from vmdump.guest.blocks import MIN_PAGE_SIZE, Block
from vmdump.guest.files import FileMemory, GuestFile
from vmdump.sources.raw.machines import Piece, Pieces, machine_layouts

__all__ = ["RawPart", "describe", "lay_out", "place"]


@dataclass(frozen=True)
class RawPart:
    """Files whose bytes, one file behind the other, have a place in guest-physical space.

    Attributes
    ----------
    paths : sequence of str or path
        Regular files or block devices.
    base : int, optional
        Guest-physical address of the first byte, where all of it is in one piece.
    blocks : sequence of (int, int), optional
        Guest-physical ranges ``[begin, end)`` that consecutive bytes go to; together as many bytes as the
        files have.
    machine : str, optional
        QEMU's machine whose whole RAM they are: ``q35``, ``pc-i440fx-7.2``, ``virt``.
    max_ram_below_4g : int, optional
        The property of the machine, where it was set.

    Raises
    ------
    RequestError
        There are no files, or several of `base`, `blocks` and `machine`; or `max_ram_below_4g` alone.
    """

    paths: Sequence[str | os.PathLike[str]]
    base: int | None = None
    blocks: Sequence[tuple[int, int]] | None = None
    machine: str | None = None
    max_ram_below_4g: int | None = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise RequestError("source: no file is named", parameter="source")
        given = [name for name in ("base", "blocks", "machine") if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(f"{given[1]}: {given[0]} says already where the memory is", parameter=given[1])
        if self.max_ram_below_4g is not None and self.machine is None:
            raise RequestError(
                "max_ram_below_4g: only together with machine=q35 or pc", parameter="max_ram_below_4g"
            )

    @property
    def is_placed(self) -> bool:
        """Whether it is said where the memory is."""
        return not (self.base is None and self.blocks is None and self.machine is None)


def lay_out(part: RawPart, files: Sequence[GuestFile], arch: str) -> Pieces:
    """Tell where the bytes of a part's files are; from 0 on, where nothing says.

    Raises
    ------
    LayoutError
        A file is not made of whole pages, or `blocks` have another size than the files.
    RequestError
        There is no rule for the machine.
    """
    name, size = files[0].path, sum(file.size for file in files)
    for file in files:
        if file.size % MIN_PAGE_SIZE:
            raise _no_pages(file.path, file.size, part.base or 0)
    if part.machine is not None:
        limit = part.max_ram_below_4g or 0
        layouts = machine_layouts(arch, part.machine, size, max_ram_below_4g=limit)
        if len(layouts) > 1:
            texts = tuple(map(describe, layouts))
            raise LayoutError(
                f"{name}: where machine {part.machine} has memory of this size depends on the vCPUs: "
                f"{texts[0]} with Intel's, {texts[1]} with AMD's",
                layouts=texts,
            )
        pieces = layouts[0]
    elif part.blocks is not None:
        pieces = _consecutive(part.blocks)
        total = sum(piece.size for piece in pieces)
        if total != size:
            raise LayoutError(
                f"{name}: the blocks have {total:#x} bytes ({total}), the file {size:#x} ({size})"
            )
    else:
        pieces = (Piece(part.base or 0, size, 0),)
    for piece in pieces:
        if piece.address % MIN_PAGE_SIZE or piece.size % MIN_PAGE_SIZE:
            raise _no_pages(name, piece.size, piece.address)
    return pieces


def _no_pages(path: str, size: int, address: int) -> LayoutError:
    return LayoutError(
        f"{path}: {size:#x} bytes at {address:#x} are not whole pages of {MIN_PAGE_SIZE} bytes",
        address=address,
    )


def _consecutive(blocks: Sequence[tuple[int, int]]) -> Pieces:
    pieces, offset = [], 0
    for begin, end in blocks:
        if not 0 <= begin < end:
            raise RequestError(f"blocks: {begin:#x}-{end:#x} is not a range", parameter="blocks")
        pieces.append(Piece(begin, end - begin, offset))
        offset += end - begin
    return tuple(pieces)


def place(pieces: Pieces, files: Sequence[GuestFile]) -> list[Block]:
    """Make blocks of pieces of files that lie one behind the other, in no order."""
    blocks = []
    for piece in pieces:
        begin = 0
        for file in files:
            low = max(piece.offset, begin)
            high = min(piece.offset + piece.size, begin + file.size)
            if low < high:
                memory = FileMemory(file, low - begin, high - low)
                blocks.append(Block(piece.address + low - piece.offset, memory))
            begin += file.size
    return blocks


def describe(pieces: Pieces) -> str:
    """Write a layout as the option ``blocks=`` has it; ``base=``, where it is in one piece."""
    ordered = sorted(pieces, key=lambda piece: piece.offset)
    if len(ordered) == 1:
        return f"base={ordered[0].address:#x}"
    return "blocks=" + ",".join(f"{piece.address:#x}-{piece.address + piece.size:#x}" for piece in ordered)
