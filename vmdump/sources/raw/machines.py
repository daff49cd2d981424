"""Where QEMU's machines have their RAM in guest-physical space, by its size.

Each rule was read off ``info mtree -f`` of QEMU 7.2; older versions of a machine have the same one, but where
it says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from vmdump.errors import RequestError

__all__ = ["Piece", "Pieces", "fitting_layouts", "machine_layouts", "may_be_elsewhere", "split_at"]

_MIB = 1 << 20
_GIB = 1 << 30
_4G = 4 << 30

_PC_LOW = 0xE0000000
"""What pc and isapc have below 4 GiB at most; a newer pc that reaches it has 3 GiB there."""
_Q35_LOW = 0xB0000000
"""A q35 that reaches it has 2 GiB below 4 GiB: its PCI Express configuration space begins there."""
_AMD_HOLE = 1012 << 30
"""With a vCPU of AMD's, from 7.1 on, memory and PCI's 64-bit window do not reach into the range of the IOMMU
here: what lies above 4 GiB lies above 1 TiB then."""
_ABOVE_AMD_HOLE = 1 << 40
_SINCE_AMD_HOLE = (7, 1)
_SINCE_GIGABYTES = (2, 0)
"""A pc of this version puts no odd parts of a GiB below 4 GiB where it need not."""


class Piece(NamedTuple):
    """RAM that is in one piece.

    Attributes
    ----------
    address : int
        Guest-physical, of the first byte.
    size : int
        Bytes.
    offset : int
        Of the first byte in the RAM, as a file has it.
    """

    address: int
    size: int
    offset: int


Pieces = tuple[Piece, ...]
_Version = tuple[int, int] | None
_Rule = Callable[[int, _Version, int], tuple[Pieces, ...]]
"""``(bytes of RAM, version of the machine if it is known, max-ram-below-4g or 0) -> layouts``; two where the
vCPU's vendor decides."""


def _at(base: int, size: int, version: _Version, limit: int) -> tuple[Pieces, ...]:
    return ((Piece(base, size, 0),),)


def _windows(
    windows: tuple[tuple[int, int | None], ...], size: int, version: _Version, limit: int
) -> tuple[Pieces, ...]:
    """Fill windows (address, bytes or None) one after the other."""
    pieces, done = [], 0
    for address, room in windows:
        here = size - done if room is None else min(room, size - done)
        if here:
            pieces.append(Piece(address, here, done))
            done += here
    return (tuple(pieces),)


def split_at(size: int, low: int, above: int = _4G) -> Pieces:
    """Give the layout with `low` bytes from 0 on, and the rest from `above` on."""
    low = min(low, size)
    rest = (Piece(above, size - low, low),) if size > low else ()
    return Piece(0, low, 0), *rest


def _split_for_vendors(size: int, low: int, version: _Version, window: int) -> tuple[Pieces, ...]:
    """Split at `low`; `window` is the size of PCI's 64-bit one, which lies behind the memory."""
    usual = split_at(size, low)
    reaches = usual[-1].address + usual[-1].size + window > _AMD_HOLE
    if not reaches or (version is not None and version < _SINCE_AMD_HOLE):
        return (usual,)
    return usual, split_at(size, low, _ABOVE_AMD_HOLE)


def _pc(window: int, size: int, version: _Version, limit: int) -> tuple[Pieces, ...]:
    low = limit or _PC_LOW
    if size >= low and (version is None or version >= _SINCE_GIGABYTES):
        low = min(low, 3 * _GIB)
    return _split_for_vendors(size, low, version, window)


def _isapc(size: int, version: _Version, limit: int) -> tuple[Pieces, ...]:
    return (split_at(size, limit or _PC_LOW),)


def _q35(window: int, size: int, version: _Version, limit: int) -> tuple[Pieces, ...]:
    low = 2 * _GIB if size >= _Q35_LOW else _Q35_LOW
    return _split_for_vendors(size, min(low, limit or _4G), version, window)


def _microvm(size: int, version: _Version, limit: int) -> tuple[Pieces, ...]:
    return (split_at(size, 3 * _GIB),)


def _malta(size: int, version: _Version, limit: int) -> tuple[Pieces, ...]:
    """All of it at 2 GiB; besides, what 32-bit kernels reach is at its old places as well."""
    pieces = [Piece(0, min(size, 256 * _MIB), 0)]
    if size > 512 * _MIB:
        pieces.append(Piece(512 * _MIB, size - 512 * _MIB, 512 * _MIB))
    return ((*pieces, Piece(2 * _GIB, size, 0)),)


_X86: Mapping[str, _Rule] = {
    "q35": partial(_q35, 32 * _GIB),
    "pc": partial(_pc, 2 * _GIB),
    "microvm": _microvm,
    "isapc": _isapc,
}
_ARM: Mapping[str, _Rule] = {
    "virt": partial(_at, _GIB),
    "sbsa-ref": partial(_at, 1 << 40),
    "vexpress-a15": partial(_at, 2 * _GIB),
    "vexpress-a9": partial(_at, 0x60000000),
    "xlnx-zcu102": partial(_windows, ((0, 2 * _GIB), (0x8_0000_0000, None))),
}
_RISCV: Mapping[str, _Rule] = dict.fromkeys(("virt", "spike", "sifive_u"), partial(_at, 2 * _GIB))
_MIPS: Mapping[str, _Rule] = {"malta": _malta, "fuloong2e": partial(_at, 0)}
_PPC: Mapping[str, _Rule] = dict.fromkeys(("g3beige", "mac99", "ppce500"), partial(_at, 0))
_PPC64: Mapping[str, _Rule] = dict.fromkeys(("pseries", "powernv", "mac99"), partial(_at, 0))

_MACHINES: Mapping[str, Mapping[str, _Rule]] = {
    "x86_64": _X86,
    "i386": _X86,
    "aarch64": _ARM,
    "arm": _ARM,
    "riscv64": _RISCV,
    "riscv32": _RISCV,
    "loongarch64": {"virt": partial(_windows, ((0, 256 * _MIB), (0x90000000, None)))},
    **dict.fromkeys(("mips", "mipsel", "mips64", "mips64el"), _MIPS),
    "ppc": _PPC,
    **dict.fromkeys(("ppc64", "ppc64le"), _PPC64),
    "s390x": {"s390-ccw-virtio": partial(_at, 0)},
}
_USUAL: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("x86_64", "i386"), ("q35", "pc", "microvm")),
    **dict.fromkeys(("aarch64", "arm", "riscv64", "riscv32", "loongarch64"), ("virt",)),
    **dict.fromkeys(("mips", "mipsel", "mips64", "mips64el"), ("malta",)),
}
"""The machines that a file may be of which nothing is known; nothing for those that have all at 0."""
_WITH_LIMIT = ("q35", "pc", "isapc")
_FAMILIES = {"pc-q35": "q35", "pc-i440fx": "pc"}
_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\..*)?")


def _find(arch: str, machine: str) -> tuple[_Rule, str, _Version]:
    known = _MACHINES.get(arch, {})
    if machine in known:
        return known[machine], machine, None
    for family in (*_FAMILIES, *known):
        name = _FAMILIES.get(family, family)
        if machine.startswith(f"{family}-") and name in known:
            numbers = _NUMBERS.fullmatch(machine.removeprefix(f"{family}-"))
            return known[name], name, (int(numbers[1]), int(numbers[2])) if numbers else None
    raise RequestError(
        f"machine: no rule for {machine!r} of {arch}; there are "
        f"{', '.join(known) or 'none'}, and blocks=BEGIN-END,... says it for any",
        parameter="machine",
    )


def machine_layouts(arch: str, machine: str, size: int, *, max_ram_below_4g: int = 0) -> tuple[Pieces, ...]:
    """Tell where a machine has its RAM.

    Parameters
    ----------
    arch : str
        The guest's architecture.
    machine : str
        As in ``-machine``: ``q35``, ``pc-i440fx-7.2``, ``virt``.
    size : int
        Bytes of RAM.
    max_ram_below_4g : int
        Bytes, as in ``-machine q35,max-ram-below-4g=...``; 0 where that is not given.

    Returns
    -------
    tuple of tuple of Piece
        One layout, its pieces by ascending address; two where it takes the vendor of the vCPUs to know.

    Raises
    ------
    RequestError
        There is no rule for the machine, or it has no such property.
    """
    rule, name, version = _find(arch, machine)
    if max_ram_below_4g and name not in _WITH_LIMIT:
        raise RequestError(
            f"max_ram_below_4g: machine {machine} has no such property", parameter="max_ram_below_4g"
        )
    if max_ram_below_4g > _4G:
        raise RequestError(
            f"max_ram_below_4g: {max_ram_below_4g:#x} is more than 4 GiB", parameter="max_ram_below_4g"
        )
    return rule(size, version, max_ram_below_4g)


def fitting_layouts(arch: str, size: int) -> dict[Pieces, str]:
    """Tell where the usual machines of an architecture have this much RAM.

    Returns
    -------
    dict of (tuple of Piece) to str
        The first machine of each layout; none for an architecture of which all have it at 0.
    """
    found: dict[Pieces, str] = {}
    for machine in _USUAL.get(arch, ()):
        for pieces in machine_layouts(arch, machine, size):
            found.setdefault(pieces, machine)
    return found


def may_be_elsewhere(arch: str, size: int) -> bool:
    """Tell whether a usual machine of an architecture does not have this much RAM in one piece at 0."""
    return any(Piece(0, size, 0) not in pieces for pieces in fitting_layouts(arch, size))
