"""AArch64 and AArch32."""

from __future__ import annotations

from vmdump.arch.base import Arch, lowest_block
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = ["AARCH64", "ARM"]


def _phys_offset(vmcoreinfo: Vmcoreinfo, lowest: int) -> int:
    number = vmcoreinfo.number("PHYS_OFFSET")
    return lowest if number is None else number


def _kernel_image_to_phys(vmcoreinfo: Vmcoreinfo, address: int) -> int | None:
    offset = vmcoreinfo.number("kimage_voffset")
    return None if offset is None else address - offset


# 64 KiB is the largest page an AArch64 guest can have; QEMU takes it for every guest.
AARCH64 = Arch(
    "aarch64",
    machine=183,
    uts_machine="aarch64",
    elf_class=64,
    byteorder="little",
    page_size=65536,
    phys_base=_phys_offset,
    kernel_image_to_phys=_kernel_image_to_phys,
)

ARM = Arch("arm", machine=40, uts_machine="armv7l", elf_class=32, byteorder="little", phys_base=lowest_block)
