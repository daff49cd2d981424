"""Floor 3: what differs per CPU architecture."""

from __future__ import annotations

from vmdump.arch import arm, i386, others, x86_64
from vmdump.arch.base import Arch
from vmdump.errors import CapabilityError, RequestError
from vmdump.formats.elf import ElfClass
from vmdump.formats.layout import ByteOrder

__all__ = ["ARCHES", "Arch", "arch_by_name", "arch_by_uts_machine", "arch_of_elf"]

ARCHES = (x86_64.ARCH, i386.ARCH, arm.AARCH64, arm.ARM, *others.ARCHES)


def arch_by_name(name: str) -> Arch:
    """Find the architecture a user names.

    Raises
    ------
    RequestError
        There is none of that name.
    """
    for arch in ARCHES:
        if arch.name == name:
            return arch
    known = ", ".join(arch.name for arch in ARCHES)
    raise RequestError(f"arch: {name!r} is not known; there are {known}", parameter="arch")


def arch_by_uts_machine(machine: str, elf_class: ElfClass, byteorder: ByteOrder) -> Arch:
    """Find the architecture of a kdump header.

    Parameters
    ----------
    machine : str
        utsname.machine, ``i686`` or ``armv7l`` for example, or ``Unknown`` as QEMU writes it.
    elf_class, byteorder
        Of the header.

    Raises
    ------
    CapabilityError
        vmdump does not know it.
    """
    family = {"i386": "i686", "i486": "i686", "i586": "i686"}.get(machine, machine)
    if family.startswith("armv"):
        family = arm.ARM.uts_machine
    for arch in ARCHES:
        if arch.uts_machine == family and arch.byteorder == byteorder:
            return arch
    raise CapabilityError(
        f"machine {machine!r} ({elf_class}-bit, {byteorder}-endian) is no architecture that vmdump knows"
    )


def arch_of_elf(machine: int, elf_class: ElfClass, byteorder: ByteOrder) -> Arch:
    """Find the architecture of an ELF header.

    A 64-bit file of a 32-bit machine is a guest with memory beyond 4 GiB; it keeps its machine.

    Raises
    ------
    CapabilityError
        vmdump does not know this machine in this byte order.
    """
    candidates = [arch for arch in ARCHES if arch.machine == machine and arch.byteorder == byteorder]
    for arch in candidates:
        if arch.elf_class == elf_class:
            return arch
    if candidates:
        return candidates[0]
    raise CapabilityError(f"ELF machine {machine}, {byteorder}-endian, is no architecture that vmdump knows")
