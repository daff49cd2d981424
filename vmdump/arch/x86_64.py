"""x86_64: long mode, and the register notes of a vCPU.

Sources of the layouts: Linux' ``struct elf_prstatus`` with ``struct
user_regs_struct`` (asm/user_64.h), and ``QEMUCPUState`` of QEMU's
``target/i386/arch_dump.c``, version 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmdump.arch.base import Arch
from vmdump.formats.layout import Field, Layout
from vmdump.formats.notes import NT_PRSTATUS, build_note
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = [
    "ARCH",
    "PAGE_OFFSET",
    "PRSTATUS",
    "QEMU_STATE",
    "START_KERNEL_MAP",
    "VMEMMAP_START",
    "prstatus_note",
    "qemu_note",
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


def _words(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, "u8") for name in names)


# Signals, times and whatever else only a process has are padding: no hypervisor knows them.
PRSTATUS = Layout(
    "x86_64 PRSTATUS note",
    (
        Field("pad_signals", "V32"),
        Field("pid", "u4"),
        Field("pad_times", "V76"),
        *_words(
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
        *_words("orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        Field("pad_fpvalid", "V8"),
    ),
)
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
        *_words(*_GPRS, "rip", "rflags"),
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
        *_words("cr0", "cr1", "cr2", "cr3", "cr4", "kernel_gs_base"),
    ),
)
"""Descriptor of the QEMU note, 440 bytes: what PRSTATUS has no room for, control registers above all."""


def prstatus_note(cpu: int, registers: Mapping[str, int]) -> bytes:
    """Build the NT_PRSTATUS note of one vCPU.

    Parameters
    ----------
    cpu : int
        Index of the vCPU, from 0; its pid is one more, as QEMU counts.
    registers : mapping of str to int
        Values by the field names of `PRSTATUS` and `QEMU_STATE`. A register that is not there is zero;
        one that only the other note has is passed over.

    Raises
    ------
    OverflowError
        A value does not fit its register.
    """
    desc = PRSTATUS.pack("little", **(_known(PRSTATUS, registers) | {"pid": cpu + 1}))
    return build_note(b"CORE", NT_PRSTATUS, desc, "little")


def qemu_note(registers: Mapping[str, int]) -> bytes:
    """Build the QEMU note of one vCPU; `registers` as for `prstatus_note`.

    Raises
    ------
    OverflowError
        A value does not fit its register.
    """
    header = {"version": _QEMU_VERSION, "size": QEMU_STATE.size}
    desc = QEMU_STATE.pack("little", **(_known(QEMU_STATE, registers) | header))
    return build_note(b"QEMU", 0, desc, "little")


def _known(layout: Layout, registers: Mapping[str, int]) -> dict[str, int]:
    return {field.name: registers[field.name] for field in layout.fields if field.name in registers}


def _phys_base(vmcoreinfo: Vmcoreinfo, lowest: int) -> int:
    return vmcoreinfo.number("phys_base") or 0


def _kernel_image_to_phys(vmcoreinfo: Vmcoreinfo, address: int) -> int | None:
    phys_base = vmcoreinfo.number("phys_base")
    return None if phys_base is None else address - START_KERNEL_MAP + phys_base


ARCH = Arch(
    "x86_64",
    machine=62,
    uts_machine="x86_64",
    elf_class=64,
    byteorder="little",
    phys_base=_phys_base,
    kernel_image_to_phys=_kernel_image_to_phys,
)
