"""s390x, IBM's z/Architecture.

Sources of the layouts: ``target/s390x/arch_dump.c`` of QEMU, after Linux' s390_regs, s390_fp_regs and struct
gs_cb (arch/s390/include/uapi/asm/ptrace.h and guarded_storage.h).
"""

from __future__ import annotations

from vmdump.arch.base import Arch
from vmdump.arch.registers import NT_FPREGSET, RegisterNote, numbered, prstatus, wide, words
from vmdump.formats.layout import Field, Layout
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = ["ARCH"]


def _linux(number: int, name: str, *fields: Field) -> RegisterNote:
    return RegisterNote(b"LINUX", number, Layout(f"s390x {name} note", fields))


def _kernel_to_phys(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    """Do what the kernel's ``__pa`` does (arch/s390/include/asm/page.h)."""
    image_phys = vmcoreinfo.hexadecimal("KERNELOFFPHYS")
    if image_phys is None:  # before 6.10: all memory is at its own address; KERNELOFFSET is of the image only
        return address
    image, identity = vmcoreinfo.hexadecimal("KERNELOFFSET"), vmcoreinfo.hexadecimal("IDENTITYBASE")
    if image is None or identity is None:
        return None
    return address - identity if address < image else address - image + image_phys


ARCH = Arch(
    "s390x",
    machine=22,
    uts_machine="s390x",
    elf_class=64,
    byteorder="big",
    register_notes=(
        # orig_gpr2, of a system call, follows the access registers.
        prstatus(
            "s390x",
            8,
            (*words("u8", "psw_mask", "psw_addr"), *numbered("r", "u8", 0, 16), *numbered("a", "u4", 0, 16)),
            fpvalid=False,
            padding=8,
        ),
        RegisterNote(
            b"CORE",
            NT_FPREGSET,
            Layout(
                "s390x FPREGSET note",
                (Field("fpc", "u4"), Field("pad_fpc", "V4"), *numbered("f", "u8", 0, 16)),
            ),
        ),
        _linux(0x305, "PREFIX", Field("prefix", "u4")),
        _linux(0x304, "CTRS", *numbered("cr", "u8", 0, 16)),
        _linux(0x301, "TIMER", Field("timer", "u8")),
        _linux(0x302, "TODCMP", Field("todcmp", "u8")),
        _linux(0x303, "TODPREG", Field("todpreg", "u4")),
        # The other half of v0 to v15 are the floating-point registers.
        _linux(0x309, "VXRS_LOW", *numbered("v", "u8", 0, 16, "_low")),
        _linux(0x30A, "VXRS_HIGH", *wide("v", 16, 32)),
        _linux(0x30B, "GS_CB", *words("u8", "gs_reserved", "gsd", "gssm", "gs_epl_a")),
    ),
    kernel_to_phys=_kernel_to_phys,
    page_tables="s390x:s390x_spaces",
)
