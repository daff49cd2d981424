"""Kernels of every architecture whose page tables a test makes, and what their VMCOREINFO says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from oracles.page_tables import (
    LEGACY,
    PAE,
    Shape,
    aarch64,
    arm_long,
    arm_short,
    hashed,
    loongarch,
    mips,
    radix,
    riscv32,
    riscv64,
    z_architecture,
)

from vmdump import BlockSource
from vmdump.arch.paging import Runs

__all__ = ["KERNELS", "LOONG", "POWER", "Kernel", "aarch64_text", "guest_of", "riscv_text", "rows"]


def rows(runs: Runs) -> list[tuple[int, int, int]]:
    return list(zip(runs.virtual.tolist(), runs.physical.tolist(), runs.size.tolist(), strict=True))


def aarch64_text(root: int, page_shift: int, bits: int) -> str:
    offset = 0xFFFF800000000000
    return (
        f"PAGESIZE={1 << page_shift}\nSYMBOL(swapper_pg_dir)={root + offset:x}\n"
        f"NUMBER(kimage_voffset)={offset:#x}\nNUMBER(VA_BITS)={bits}\nNUMBER(TCR_EL1_T1SZ)={64 - bits:#x}\n"
    )


def riscv_text(root: int, page_shift: int, bits: int) -> str:
    offset = 0xC0000000 if bits == 32 else 0xFFFFFFFF00000000
    return (
        f"PAGESIZE=4096\nSYMBOL(swapper_pg_dir)={root + offset:x}\n"
        f"NUMBER(va_kernel_pa_offset)={offset:#x}\nNUMBER(VA_BITS)={bits}\n"
    )


def other_text(begin: int, *lines: str) -> Callable[[int, int, int], str]:
    """Of an architecture where memory, and so the root, is at `begin` in the kernel's addresses."""

    def text(root: int, page_shift: int, bits: int) -> str:
        named = f"PAGESIZE={1 << page_shift}\nSYMBOL(swapper_pg_dir)={begin + root:x}\n"
        return named + "".join(f"{line}\n" for line in lines)

    return text


@dataclass(frozen=True)
class Kernel:
    """A kernel whose tables are known by VMCOREINFO.

    text    (root, shift of a page, bits of an address) -> VMCOREINFO
    page    shift of a page
    large   of the pages that there are besides
    widest  bits of a guest-physical address
    low     the lowest offset that only tables translate
    """

    arch: str
    shape: Shape
    text: Callable[[int, int, int], str]
    page: int = 12
    large: tuple[int, ...] = ()
    widest: int = 48
    low: int | None = None

    def vmcoreinfo(self, root: int) -> bytes:
        return self.text(root, self.page, self.shape.bits).encode()


LOW_TEXT = (0xC0000000, "SYMBOL(_stext)=c0008000")
POWER = 0xC000 << 48
LOONG, XKPHYS = 0x9000 << 48, 0x9800 << 48
BLOCKS = {12: (30, 21), 14: (25,), 16: (29,)}
KERNELS = {
    **{
        f"aarch64, {1 << shift - 10}K, {bits} bits": Kernel(
            "aarch64",
            aarch64(shift, bits),
            aarch64_text,
            shift,
            (36, 25) if (shift, bits) == (14, 52) else BLOCKS[shift],
            52 if bits == 52 or shift == 16 else 48,
        )
        for shift, all_bits in ((12, (39, 48, 52)), (14, (36, 47, 48, 52)), (16, (42, 48, 52)))
        for bits in all_bits
    },
    **{f"Sv{b}": Kernel("riscv64", riscv64(b), riscv_text, 12, (30, 21), 56) for b in (39, 48, 57)},
    "Sv32": Kernel("riscv32", riscv32(), riscv_text, 12, (22,), 34),
    "arm": Kernel("arm", arm_short(), other_text(*LOW_TEXT), 12, (20,), 32),
    "arm, LPAE": Kernel("arm", arm_long(), other_text(*LOW_TEXT, "CONFIG_ARM_LPAE=y"), 12, (30, 21), 40),
    "i386": Kernel("i386", LEGACY, other_text(*LOW_TEXT), 12, (22,), 32),
    "i386, PAE": Kernel("i386", PAE, other_text(*LOW_TEXT, "CONFIG_X86_PAE=y"), 12, (21,), 36),
    "ppc64, radix": Kernel("ppc64", radix(16), other_text(POWER, "NUMBER(RADIX_MMU)=1"), 16, (30, 21), 53),
    "ppc64le, radix, 4K": Kernel(
        "ppc64le", radix(12), other_text(POWER, "NUMBER(RADIX_MMU)=1"), 12, (30, 21), 53
    ),
    "ppc64le, hash": Kernel("ppc64le", hashed(16), other_text(POWER), 16, (24,), 53, 1 << 51),
    "ppc64, hash, 4K": Kernel(
        "ppc64", hashed(12), other_text(POWER, "NUMBER(RADIX_MMU)=0"), 12, (), 53, 0x3D << 40
    ),
    **{
        f"s390x, {levels} levels": Kernel(
            "s390x", z_architecture(levels), other_text(0), 12, (31, 20) if levels > 2 else (20,), 64
        )
        for levels in (2, 3, 4, 5)
    },
    **{
        f"loongarch64, {1 << shift - 10}K": Kernel(
            "loongarch64", loongarch(shift), other_text(LOONG), shift, (2 * shift - 3,), 48
        )
        for shift in (12, 14, 16)
    },
}

KERNELS |= {
    # Present, written, accessed and modified; with a bit for "not to be read" behind the first one, or not.
    "mips64el, 4K, no RI": Kernel(
        "mips64el", mips(12, 0x1D, 13, "little"), other_text(XKPHYS), 12, (21,), 50
    ),
    "mips64, 4K, RI": Kernel("mips64", mips(12, 0xF, 14, "big"), other_text(XKPHYS), 12, (21,), 50),
    "mips64el, 16K": Kernel("mips64el", mips(14, 0xF, 16, "little"), other_text(XKPHYS), 14, (25,), 48),
}


def guest_of(kernel: Kernel, memory: bytearray, root: int) -> BlockSource:
    return BlockSource(memory, arch=kernel.arch, vmcoreinfo=kernel.vmcoreinfo(root), page_size=4096)
