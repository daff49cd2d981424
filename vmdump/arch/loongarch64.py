"""64-bit LoongArch.

Sources of the layouts: Linux' ``struct user_pt_regs`` and ``struct user_fp_state``
(arch/loongarch/include/uapi/asm/ptrace.h), as QEMU has written them since 8.0.
"""

from __future__ import annotations

from vmdump.arch.base import Arch
from vmdump.arch.registers import NT_FPREGSET, RegisterNote, numbered, prstatus, words
from vmdump.formats.layout import Layout
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = ["ARCH"]

_WINDOWS = (0x8000, 0x9000)
"""Top 16 bits of the direct-mapped windows that Linux sets: memory without and with the caches."""


def _kernel_to_phys(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    return address & (1 << 48) - 1 if address >> 48 in _WINDOWS else None


ARCH = Arch(
    "loongarch64",
    machine=258,
    uts_machine="loongarch64",
    elf_class=64,
    byteorder="little",
    page_sizes=(4096, 16384, 65536),
    register_notes=(
        # era is the program counter, as wherever Linux stops a program.
        prstatus(
            "loongarch64",
            8,
            (*numbered("r", "u8", 0, 32), *words("u8", "orig_a0", "era", "badv")),
            fpvalid=True,
            padding=80,
        ),
        RegisterNote(
            b"CORE",
            NT_FPREGSET,
            Layout(
                "loongarch64 FPREGSET note",
                (*numbered("f", "u8", 0, 32), *words("u8", "fcc"), *words("u4", "fcsr")),
            ),
        ),
    ),
    kernel_to_phys=_kernel_to_phys,
    page_tables="loongarch64:loongarch64_spaces",
)
