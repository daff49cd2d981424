"""What QEMU's monitor tells of a guest that QEMU itself cannot dump: MIPS, and LoongArch before 8.0.

The blocks are in ``info mtree -f``, the registers in ``info registers -a``. The headers made of them are
those that QEMU's dump would begin with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from vmdump.arch import ARCHES, Arch
from vmdump.errors import LayoutError, QmpError
from vmdump.formats.elf import PHDR, PT_LOAD
from vmdump.formats.elf_headers import ElfHeaders
from vmdump.sources.qemu.way import Commands

__all__ = ["describe_guest", "has_no_dump", "parse_memory", "parse_registers"]

_NOT_SUPPORTED = "not currently supported"
# Not by the name of an address space: machines give theirs names of their own. Nor by the root of the view,
# which is the memory itself where the system has nothing else.
_SYSTEM = re.compile(r"\b(?:root|Root memory region): system$", re.MULTILINE)
# Of memory that devices or the host have behind it QEMU dumps none: romd, ramd, nv-ram.
_RANGE = re.compile(r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:ram|rom)\): ", re.MULTILINE)
_CPU = re.compile(r"^CPU#\d+\n", re.MULTILINE)
_MIPS_GPRS = re.compile(r"^GPR(\d\d): (.*)$", re.MULTILINE)

# Where a debugger looks for the program counter of a thread, Linux has put it into these registers.
_LOONGARCH: Mapping[str, str] = {
    **{f"r{number}": rf"\br{number} ([0-9a-f]+)" for number in range(32)},
    **{f"f{number}": rf"\bf{number} ([0-9a-f]+)" for number in range(32)},
    "era": r"\bPC=([0-9a-f]+)",
    "badv": r"^BADV=([0-9a-f]+)",
    "fcsr": r"\bFCSR0 0x([0-9a-f]+)",
}
_MIPS: Mapping[str, str] = {
    "cp0_epc": r"^pc=0x([0-9a-f]+)",
    "hi": r"\bHI=0x([0-9a-f]+)",
    "lo": r"\bLO=0x([0-9a-f]+)",
    "cp0_status": r"^CP0 Status +0x([0-9a-f]+)",
    "cp0_cause": r"\bCause +0x([0-9a-f]+)",
}


def has_no_dump(refusal: QmpError) -> bool:
    """Tell whether QEMU refuses to dump because it cannot dump this architecture."""
    return _NOT_SUPPORTED in str(refusal)


def describe_guest(commands: Commands, target: str, refusal: QmpError) -> ElfHeaders:
    """Make the headers of a guest that QEMU does not dump.

    Parameters
    ----------
    commands : Commands
        The guest's.
    target : str
        As QEMU names the architecture.
    refusal : QmpError
        What QEMU said when it was asked to dump.

    Raises
    ------
    QmpError
        `refusal`, where the architecture is not known here either; QEMU has ended.
    LayoutError
        The monitor's answers are not known.
    """
    arch = next((arch for arch in ARCHES if arch.name == target), None)
    if arch is None:
        raise refusal
    memory = parse_memory(_ask(commands, "info mtree -f"))
    if not memory:
        raise LayoutError(f"{commands.path}: info mtree -f shows no memory of the guest")
    cpus = parse_registers(arch, _ask(commands, "info registers -a"))
    if not cpus:
        raise LayoutError(f"{commands.path}: info registers -a shows no registers of {arch.name}")
    loads = np.zeros(len(memory), PHDR[64].dtype(arch.byteorder))
    loads["p_type"] = PT_LOAD
    loads["p_paddr"] = loads["p_vaddr"] = [begin for begin, _ in memory]
    loads["p_memsz"] = loads["p_filesz"] = [end - begin for begin, end in memory]
    return ElfHeaders(arch.elf_class, arch.byteorder, arch.machine, loads, arch.notes(cpus))


def _ask(commands: Commands, line: str) -> str:
    return str(commands.execute("human-monitor-command", {"command-line": line})).replace("\r\n", "\n")


def parse_memory(mtree: str) -> list[tuple[int, int]]:
    """Find the ranges ``[begin, end)`` of memory in the text of ``info mtree -f``, ascending."""
    view = next((view for view in mtree.split("FlatView #") if _SYSTEM.search(view)), "")
    ranges = _RANGE.findall(view)
    return [(int(first, 16), int(last, 16) + 1) for first, last in ranges]


def parse_registers(arch: Arch, text: str) -> list[dict[str, int]]:
    """Find the registers of each vCPU in the text of ``info registers -a``; none for other architectures.

    Parameters
    ----------
    arch : Arch
        LoongArch or MIPS.
    text : str
        The monitor's.
    """
    patterns = {"loongarch64": _LOONGARCH}.get(arch.name, _MIPS if arch.name.startswith("mips") else {})
    cpus = []
    for part in _CPU.split(text)[1:]:
        found = {name: re.search(pattern, part, re.MULTILINE) for name, pattern in patterns.items()}
        registers = {name: int(match[1], 16) for name, match in found.items() if match}
        if arch.name.startswith("mips"):
            # Four to a line, each under its name in the calling convention.
            for first, line in _MIPS_GPRS.findall(part):
                values = line.split()[1::2]
                registers |= {f"r{int(first) + index}": int(value, 16) for index, value in enumerate(values)}
        if registers:
            cpus.append(registers)
    return cpus
