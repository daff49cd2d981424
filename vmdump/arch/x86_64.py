"""x86_64: long mode, and the register notes of a vCPU.

Sources of the layouts: Linux' ``struct elf_prstatus`` with ``struct
user_regs_struct`` (asm/user_64.h), and ``QEMUCPUState`` of QEMU's
``target/i386/arch_dump.c``, version 1.
"""

from __future__ import annotations

from vmdump.arch.base import Arch
from vmdump.arch.registers import RegisterNote, prstatus, words
from vmdump.formats.layout import Field, Layout
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = [
    "ARCH",
    "PAGE_OFFSET",
    "PRSTATUS",
    "QEMU_NOTE",
    "QEMU_STATE",
    "START_KERNEL_MAP",
    "VMEMMAP_START",
]

START_KERNEL_MAP = 0xFFFFFFFF80000000
"""Where Linux maps its image: __START_KERNEL_map, moved by phys_base."""

PAGE_OFFSET = 0xFFFF888000000000
"""Where Linux maps all memory under 4-level page tables and without KASLR: the direct map."""

VMEMMAP_START = 0xFFFFEA0000000000
"""Where Linux then maps the struct pages."""

_GPRS = (
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rsp",
    "rbp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
)

PRSTATUS_NOTE = prstatus(
    "x86_64",
    8,
    words(
        "u8",
        *(
            "r15",
            "r14",
            "r13",
            "r12",
            "rbp",
            "rbx",
            "r11",
            "r10",
            "r9",
            "r8",
            "rax",
            "rcx",
            "rdx",
            "rsi",
            "rdi",
        ),
        *("orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
    ),
    fpvalid=False,
)
PRSTATUS = PRSTATUS_NOTE.layout
"""Descriptor of CORE/NT_PRSTATUS, 336 bytes."""


def _segment(name: str) -> tuple[Field, ...]:
    return (
        Field(name, "u4"),
        Field(f"{name}_limit", "u4"),
        Field(f"{name}_flags", "u4"),
        Field(f"pad_{name}", "V4"),
        Field(f"{name}_base", "u8"),
    )


_QEMU_VERSION = 1

QEMU_STATE = Layout(
    "x86_64 QEMU note",
    (
        Field("version", "u4"),
        Field("size", "u4"),
        *words("u8", *_GPRS, "rip", "rflags"),
        *_segment("cs"),
        *_segment("ds"),
        *_segment("es"),
        *_segment("fs"),
        *_segment("gs"),
        *_segment("ss"),
        *_segment("ldt"),
        *_segment("tr"),
        *_segment("gdt"),
        *_segment("idt"),
        *words("u8", "cr0", "cr1", "cr2", "cr3", "cr4", "kernel_gs_base"),
    ),
)
"""Descriptor of the QEMU note, 440 bytes: what PRSTATUS has no room for, control registers above all."""


QEMU_NOTE = RegisterNote(
    b"QEMU",
    0,
    QEMU_STATE,
    constants=(("version", _QEMU_VERSION), ("size", QEMU_STATE.size)),
    always=True,
    apart=True,
)


def _phys_base(vmcoreinfo: Vmcoreinfo, lowest: int) -> int:
    return vmcoreinfo.number("phys_base") or 0


def _kernel_to_phys(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    phys_base = vmcoreinfo.number("phys_base")
    return None if phys_base is None else address - START_KERNEL_MAP + phys_base


ARCH = Arch(
    "x86_64",
    machine=62,
    uts_machine="x86_64",
    elf_class=64,
    byteorder="little",
    register_notes=(PRSTATUS_NOTE, QEMU_NOTE),
    phys_base=_phys_base,
    kernel_to_phys=_kernel_to_phys,
    page_tables="x86:x86_64_spaces",
)
