"""AArch32.

Sources of the layouts: Linux' ``struct pt_regs`` (arch/arm/include/asm/ptrace.h) and ``struct user_vfp``
(asm/user.h), which QEMU writes.
"""

from __future__ import annotations

from vmdump.arch.base import Arch, linear_map, lowest_block
from vmdump.arch.registers import RegisterNote, numbered, prstatus, words
from vmdump.formats.layout import Layout

__all__ = ["ARCH"]

_NT_ARM_VFP = 0x400
_VFP = Layout("arm VFP note", (*numbered("d", "u8", 0, 32), *words("u4", "fpscr")))

ARCH = Arch(
    "arm",
    machine=40,
    uts_machine="armv7l",
    elf_class=32,
    byteorder="little",
    register_notes=(
        # ORIG_r0, of a system call, follows cpsr.
        prstatus(
            "arm",
            4,
            (*numbered("r", "u4", 0, 13), *words("u4", "sp", "lr", "pc", "cpsr")),
            fpvalid=True,
            padding=4,
        ),
        RegisterNote(b"LINUX", _NT_ARM_VFP, _VFP),
    ),
    phys_base=lowest_block,
    kernel_to_phys=linear_map,
    kernel_to_phys_is_sure=False,
    page_tables="arm:arm_spaces",
)
