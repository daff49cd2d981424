"""AArch64: an EL1 guest of ARMv8 and later.

Sources of the layouts: Linux' ``struct user_pt_regs``, ``struct user_fpsimd_state`` and ``struct
user_sve_header`` (arch/arm64/include/uapi/asm/ptrace.h), which QEMU writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from vmdump.arch.base import Arch
from vmdump.arch.registers import NT_FPREGSET, RegisterNote, numbered, prstatus, wide, words
from vmdump.errors import RequestError
from vmdump.formats.layout import ByteOrder, Field, Layout
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.units import align_up

__all__ = ["ARCH"]

_NT_ARM_SVE = 0x405
_SVE_HEADER = 16
_SVE_ALIGN = 16
_MAX_VECTOR = 256
"""Bytes: the architecture's longest vector, 2048 bits."""


@cache
def _sve_layout(vector: int) -> Layout:
    """Lay NT_ARM_SVE out for vectors of so many bytes; a predicate has a bit for each byte."""
    header = (
        *words("u4", "size", "max_size"),
        *words("u2", "sve_vl", "sve_max_vl", "sve_flags"),
        Field("pad_header", "V2"),
    )
    fields = [
        *header,
        *numbered("z", f"V{vector}", 0, 32),
        *numbered("p", f"V{vector // 8}", 0, 16),
        Field("ffr", f"V{vector // 8}"),
    ]
    used = _SVE_HEADER + 32 * vector + 17 * vector // 8
    if align_up(used, _SVE_ALIGN) > used:
        fields.append(Field("pad_ffr", f"V{align_up(used, _SVE_ALIGN) - used}"))
    fields += [*words("u4", "fpsr", "fpcr"), Field("pad_end", "V8")]
    return Layout("aarch64 SVE note", tuple(fields))


class _SveNote(RegisterNote):
    """NT_ARM_SVE, as long as the vectors are: ``sve_vl`` says how many bytes that is."""

    def layout_of(self, desc: bytes, byteorder: ByteOrder) -> Layout:
        """Give the layout for the vector length in the header; for the shortest one, if that is invalid."""
        vector = int.from_bytes(desc[8:10], byteorder)
        return _sve_layout(vector) if _is_vector(vector) else self.layout

    def layout_for(self, registers: Mapping[str, int]) -> Layout | None:
        """Give the layout if there is a vector register or a vector length among the registers."""
        if self.names.isdisjoint(registers.keys() - {"fpsr", "fpcr"}):
            return None
        vector = registers.get("sve_vl", 0)
        if not _is_vector(vector):
            raise RequestError(
                f"cpus: sve_vl is {vector}; with SVE registers it is the vectors' length, "
                f"a multiple of 16 bytes up to {_MAX_VECTOR}",
                parameter="cpus",
            )
        return _sve_layout(vector)

    def constants_for(self, registers: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """Give the note's sizes for the vectors as long as they are, and as long as they can be."""
        vector, longest = registers["sve_vl"], registers.get("sve_max_vl", 0)
        size = _sve_layout(vector).size
        return (("size", size), ("max_size", _sve_layout(longest).size if _is_vector(longest) else size))

    def wide_order(self, byteorder: ByteOrder) -> ByteOrder:
        """Tell that vectors are little-endian also in big-endian notes."""
        return "little"


def _is_vector(size: int) -> bool:
    return 0 < size <= _MAX_VECTOR and size % 16 == 0


_FPREGSET = Layout(
    "aarch64 FPREGSET note", (*wide("v", 0, 32), *words("u4", "fpsr", "fpcr"), Field("pad_end", "V8"))
)


def _phys_offset(vmcoreinfo: Vmcoreinfo, lowest: int) -> int:
    number = vmcoreinfo.number("PHYS_OFFSET")
    return lowest if number is None else number


def _kernel_to_phys(vmcoreinfo: Vmcoreinfo, address: int, lowest: int) -> int | None:
    offset = vmcoreinfo.number("kimage_voffset")
    return None if offset is None else address - offset


# 64 KiB is the largest page that an AArch64 guest can have; QEMU takes it for every guest.
ARCH = Arch(
    "aarch64",
    machine=183,
    uts_machine="aarch64",
    elf_class=64,
    byteorder="little",
    page_sizes=(4096, 16384, 65536),
    register_notes=(
        prstatus(
            "aarch64", 8, (*numbered("x", "u8", 0, 31), *words("u8", "sp", "pc", "pstate")), fpvalid=True
        ),
        RegisterNote(b"CORE", NT_FPREGSET, _FPREGSET),
        _SveNote(b"LINUX", _NT_ARM_SVE, _sve_layout(_SVE_ALIGN), constants=(("size", 0), ("max_size", 0))),
    ),
    page_size=65536,
    phys_base=_phys_offset,
    kernel_to_phys=_kernel_to_phys,
    page_tables="aarch64:aarch64_spaces",
)
