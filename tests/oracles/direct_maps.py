"""Where Linux sees all memory, or its image, without page tables: made-up guests of each architecture.

Sources: ``__pa`` of each arch/*/include/asm/page.h, and the processors' manuals for what no kernel chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DIRECT_MAPS", "DirectMap"]


@dataclass(frozen=True)
class DirectMap:
    """A guest of one block of memory."""

    name: str
    arch: str
    word: int
    """Bytes of a pointer."""
    byteorder: Literal["little", "big"]
    start: int
    """Guest-physical address of its memory."""
    image: int
    """At which virtual address the kernel's image would begin, if memory began with it."""
    data: int
    """At which one the kernel has the start of memory where it takes memory for itself."""
    lines: str = ""
    """What VMCOREINFO says about it."""
    sure: bool = True
    """False where these lines leave it open."""


DIRECT_MAPS = (
    *(
        DirectMap(f"arm {split}", "arm", 4, "little", start, at, at, f"SYMBOL(_stext)={text:x}\n", False)
        for split, start, at, text in (
            ("3G", 0x40000000, 0xC0000000, 0xC0300000),
            ("2G", 0x80000000, 0x80000000, 0x80008000),
            ("1G", 0x10000000, 0x40000000, 0x40208000),
        )
    ),
    *(
        DirectMap(name, "i386", 4, "little", start, at, at, f"SYMBOL(_stext)={text:x}\n", False)
        for name, start, at, text in (
            ("i386", 0, 0xC0000000, 0xC1000000),
            ("i386 KASLR", 0, 0xC0000000, 0xD9000000),
            ("i386 without its first MiB", 1 << 20, 0xC0100000, 0xC1000000),
        )
    ),
    DirectMap("ppc", "ppc", 4, "big", 1 << 28, 0xC0000000, 0xC0000000, "SYMBOL(_stext)=c0000000\n", False),
    DirectMap("ppc64", "ppc64", 8, "big", 0, 0xC << 60, 0xC << 60),
    DirectMap("ppc64le", "ppc64le", 8, "little", 1 << 32, 0xC000000100000000, 0xC000000100000000),
    DirectMap("mips", "mips", 4, "big", 0, 0x80000000, 0xA0000000),
    DirectMap("mipsel", "mipsel", 4, "little", 1 << 28, 0x90000000, 0xB0000000),
    DirectMap("mips64", "mips64", 8, "big", 0, 0xFFFFFFFF80000000, 0x9800000000000000),
    DirectMap("mips64el", "mips64el", 8, "little", 1 << 28, 0xA800000010000000, 0xFFFFFFFFB0000000),
    DirectMap("loongarch64", "loongarch64", 8, "little", 1 << 32, 0x9000000100000000, 0x8000000100000000),
    DirectMap("s390x before 6.10", "s390x", 8, "big", 0, 0, 0, "KERNELOFFSET=5fd0000\n"),
    DirectMap(
        "s390x",
        "s390x",
        8,
        "big",
        0,
        0x3FFFE800000,
        0x2000000000,
        "IDENTITYBASE=2000000000\nKERNELOFFSET=3fffe801000\nKERNELOFFPHYS=1000\n",
    ),
    *(
        DirectMap(name, "riscv32", 4, "little", start, at, at, f"NUMBER(va_kernel_pa_offset)={offset:#x}\n")
        for name, start, at, offset in (
            ("riscv32", 0x80000000, 0xC0000000, 0x40000000),
            ("riscv32 with high memory", 0xE0000000, 0xC0000000, 0xE0000000),
        )
    ),
)
