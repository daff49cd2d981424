"""What differs per CPU architecture."""

from __future__ import annotations

from vmdump.arch import (
    aarch64,
    arm,
    i386,
    loongarch64,
    mips,
    mips64,
    ppc,
    ppc64,
    riscv32,
    riscv64,
    s390x,
    x86_64,
)
from vmdump.arch.base import Arch
from vmdump.errors import RequestError
from vmdump.formats.elf import ElfClass
from vmdump.formats.layout import ByteOrder
from vmdump.formats.notes import NT_PRSTATUS, iter_notes
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = [
    "ARCHES",
    "Arch",
    "arch_by_name",
    "arch_by_uts_machine",
    "arch_of_elf",
    "arch_of_kdump",
    "unknown_arch",
]

_EM_NONE = 0
ARCHES = (
    x86_64.ARCH,
    i386.ARCH,
    aarch64.ARCH,
    arm.ARCH,
    ppc64.BIG,
    ppc64.LITTLE,
    ppc.ARCH,
    s390x.ARCH,
    riscv64.ARCH,
    riscv32.ARCH,
    loongarch64.ARCH,
    mips.BIG,
    mips.LITTLE,
    mips64.BIG,
    mips64.LITTLE,
)

_LINES = {
    "NUMBER(phys_base)": x86_64.ARCH,
    "NUMBER(kimage_voffset)": aarch64.ARCH,
    "NUMBER(va_kernel_pa_offset)": riscv64.ARCH,
}
"""Lines of VMCOREINFO that only the kernels of one architecture have."""


def arch_by_name(name: str) -> Arch:
    """Find the architecture a user names.

    Raises
    ------
    RequestError
        No architecture has that name.
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
        utsname.machine, ``i686`` or ``armv7l`` for example. QEMU writes ``Unknown`` on most architectures:
        then only class and byte order are known.
    elf_class, byteorder
        Of the header.
    """
    family = {"i386": "i686", "i486": "i686", "i586": "i686"}.get(machine, machine)
    if family.startswith("armv"):
        family = arm.ARCH.uts_machine
    if family == ppc64.LITTLE.uts_machine and byteorder == "big":
        # QEMU 7.2 gives little-endian kernels big-endian headers.
        family = ppc64.BIG.uts_machine
    for arch in ARCHES:
        if arch.uts_machine == family and arch.byteorder == byteorder:
            return arch
    return unknown_arch(_EM_NONE, elf_class, byteorder)


def arch_of_kdump(
    machine: str, elf_class: ElfClass, byteorder: ByteOrder, notes: bytes, vmcoreinfo: Vmcoreinfo
) -> Arch:
    """Find the architecture of a kdump file.

    Parameters
    ----------
    machine : str
        utsname.machine of its header.
    elf_class, byteorder
        Of the header.
    notes : bytes
        Its notes: where the machine is not known, the size of NT_PRSTATUS tells it, which differs between all
        architectures of one class and byte order that QEMU dumps.
    vmcoreinfo : Vmcoreinfo
        Without such a note, a line that only one architecture's kernels have tells it.
    """
    arch = arch_by_uts_machine(machine, elf_class, byteorder)
    if arch.machine != _EM_NONE:
        return arch
    size = next((note.size for note in iter_notes(notes, byteorder) if note.type == NT_PRSTATUS), 0)
    for known in ARCHES:
        sizes = [kind.layout.size for kind in known.register_notes if kind.type == NT_PRSTATUS]
        if (known.elf_class, known.byteorder, sizes) == (elf_class, byteorder, [size]):
            return known
    for line, known in _LINES.items():
        if line in vmcoreinfo and (known.elf_class, known.byteorder) == (elf_class, byteorder):
            return known
    return arch


def arch_of_elf(machine: int, elf_class: ElfClass, byteorder: ByteOrder) -> Arch:
    """Find the architecture of an ELF header.

    A 64-bit file of a 32-bit machine is a guest with memory beyond 4 GiB; it keeps its machine.
    """
    candidates = [arch for arch in ARCHES if arch.machine == machine and arch.byteorder == byteorder]
    for arch in candidates:
        if arch.elf_class == elf_class:
            return arch
    if candidates:
        return candidates[0]
    for arch in ARCHES:
        if arch.machine == machine and arch.elf_class == elf_class:
            return arch._replace(byteorder=byteorder)
    return unknown_arch(machine, elf_class, byteorder)


def unknown_arch(machine: int, elf_class: ElfClass, byteorder: ByteOrder) -> Arch:
    """Make an architecture of which nothing else is known: it can be read, and written to ELF."""
    sizes = tuple(1 << bits for bits in range(12, 17))
    return Arch(f"ELF machine {machine}", machine, "", elf_class, byteorder, page_sizes=sizes)
