"""i386: 32-bit protected mode, and an x86_64 guest whose first vCPU has not yet entered long mode."""

from __future__ import annotations

from vmdump.arch.base import Arch

__all__ = ["ARCH"]

# QEMU compares the end of memory with UINT_MAX here, so firmware that ends at 4 GiB makes a 64-bit file.
ARCH = Arch(
    "i386",
    machine=3,
    uts_machine="i686",
    elf_class=32,
    byteorder="little",
    sub_header_32="32 packed",
    max_end_32=0xFFFFFFFF,
)
