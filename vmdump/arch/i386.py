"""i386: 32-bit protected mode, and an x86_64 guest whose first vCPU has not yet entered long mode.

Source of the layout: Linux' ``struct user_regs_struct`` (asm/user_32.h). The QEMU note is x86_64's, whose
names for the registers are the 64-bit ones.
"""

from __future__ import annotations

from vmdump.arch.base import Arch, linear_map
from vmdump.arch.registers import prstatus, words
from vmdump.arch.x86_64 import QEMU_NOTE
from vmdump.formats.layout import Field
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = ["ARCH"]

_GPRS = ("ebx", "ecx", "edx", "esi", "edi", "ebp", "eax")


def _selector(name: str) -> tuple[Field, ...]:
    return (Field(name, "u2"), Field(f"pad_{name}", "V2"))


_REGISTERS = (
    *words("u4", *_GPRS),
    *_selector("ds"),
    *_selector("es"),
    *_selector("fs"),
    *_selector("gs"),
    *words("u4", "orig_eax", "eip"),
    *_selector("cs"),
    *words("u4", "eflags", "esp"),
    *_selector("ss"),
)


def _kernel_to_phys(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    # A PC's memory begins at 0, also where a dump lacks its first pages.
    return linear_map(vmcoreinfo, address, 0)


# QEMU compares the end of memory with UINT_MAX here, so firmware that ends at 4 GiB makes a 64-bit file.
ARCH = Arch(
    "i386",
    machine=3,
    uts_machine="i686",
    elf_class=32,
    byteorder="little",
    register_notes=(prstatus("i386", 4, _REGISTERS, fpvalid=False), QEMU_NOTE),
    short_names=tuple((name, f"r{name[1:]}") for name in (*_GPRS, "esp", "eip", "eflags")),
    sub_header_32="32 packed",
    max_end_32=0xFFFFFFFF,
    kernel_to_phys=_kernel_to_phys,
    kernel_to_phys_is_sure=False,
    page_tables="x86:i386_spaces",
)
