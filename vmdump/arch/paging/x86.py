"""Page tables of x86: 32-bit, PAE, and the four or five levels of long mode.

Source: Intel's Software Developer's Manual, volume 3, chapter 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging.tables import AddressSpace, AddressSpaces, KernelFacts, TableFormat, Words

__all__ = ["i386_spaces", "x86_64_spaces"]

_CR0_PG = 1 << 31
_CR4_PSE = 1 << 4
_CR4_PAE = 1 << 5
_CR4_LA57 = 1 << 12
_PS = 1 << 7
_ADDRESS = 0x000F_FFFF_FFFF_F000
"""Bits 51:12."""
_ATTRIBUTES = 0xFFF0_0000_0000_0000
"""Bits 63:52: execute-disable, protection keys, and what is software's."""


def _decode_long(
    entries: Words, level: int, places: Words, *, large: tuple[int, ...], shifts: tuple[int, ...], mask: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    address = entries & np.uint64(mask)
    if level == len(shifts) - 1:
        page = np.ones(entries.shape, bool)
    elif level in large:
        page = (entries & np.uint64(_PS)) != 0
    else:
        page = np.zeros(entries.shape, bool)
    # Bit 12 of a large page says how it is cached, and the others below its size are reserved.
    whole = address & np.uint64(-(1 << shifts[level]) & (1 << 64) - 1)
    return ~page, page, np.where(page, whole, address)


def _decode_32(
    entries: Words, level: int, places: Words, *, pse: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    address = entries & np.uint64(0xFFFFF000)
    if level == 1:
        page = np.ones(entries.shape, bool)
        return ~page, page, address
    page = (entries & np.uint64(_PS if pse else 0)) != 0
    # Bits 39:32 of the address of a 4 MiB page are bits 20:13 of the entry (PSE-36).
    whole = (entries & np.uint64(0xFFC00000)) | (entries & np.uint64(0x1FE000)) << np.uint64(19)
    return ~page, page, np.where(page, whole, address)


@cache
def _format_long(bits: int, shifts: tuple[int, ...], large: tuple[int, ...], mask: int) -> TableFormat:
    decode = partial(_decode_long, large=large, shifts=shifts, mask=mask)
    return TableFormat(bits, shifts, decode, attributes=_ATTRIBUTES)


@cache
def _format_32(pse: bool) -> TableFormat:
    return TableFormat(32, (22, 12), partial(_decode_32, pse=pse), entry_size=4)


def _long_mode(cr3: int, *, five_levels: bool, encryption: int = 0) -> AddressSpace:
    mask = _ADDRESS & ~encryption
    shifts = (48, 39, 30, 21, 12) if five_levels else (39, 30, 21, 12)
    large = (2, 3) if five_levels else (1, 2)
    form = _format_long(57 if five_levels else 48, shifts, large, mask)
    return AddressSpace(form, cr3 & mask, "sign", listed_with_ones=True)


def _pae(cr3: int) -> AddressSpace:
    return AddressSpace(_format_long(32, (30, 21, 12), (1,), _ADDRESS), cr3 & 0xFFFFFFE0, "zeros")


def _legacy(cr3: int, *, pse: bool) -> AddressSpace:
    return AddressSpace(_format_32(pse), cr3 & 0xFFFFF000, "zeros")


def _of_cpu(registers: Mapping[str, int], *, long_mode: bool, encryption: int = 0) -> AddressSpace | None:
    cr3, cr4 = registers["cr3"], registers["cr4"]
    if not registers["cr0"] & _CR0_PG:
        return None
    if not cr4 & _CR4_PAE:
        return _legacy(cr3, pse=bool(cr4 & _CR4_PSE))
    if not long_mode:
        return _pae(cr3)
    return _long_mode(cr3, five_levels=bool(cr4 & _CR4_LA57), encryption=encryption)


def _known(cpus: Sequence[Mapping[str, int]]) -> list[Mapping[str, int]]:
    """Give the vCPUs with control registers; a vCPU with only NT_PRSTATUS has none."""
    return [cpu for cpu in cpus if all(name in cpu for name in ("cr0", "cr3", "cr4"))]


def i386_spaces(facts: KernelFacts) -> AddressSpaces:
    """Find the page tables of a guest in 32-bit mode.

    Parameters
    ----------
    facts : KernelFacts
        With ``cr0``, ``cr3`` and ``cr4`` of the vCPUs' QEMU notes; VMCOREINFO says which form the kernel's
        tables have.
    """
    kernel, root = None, facts.root
    if root is not None:
        kernel = _pae(root) if facts.vmcoreinfo.get("CONFIG_X86_PAE") == "y" else _legacy(root, pse=True)
    return AddressSpaces(kernel, tuple(_of_cpu(cpu, long_mode=False) for cpu in _known(facts.cpus)))


def x86_64_spaces(facts: KernelFacts) -> AddressSpaces:
    """Find the page tables of a guest in long mode.

    Parameters
    ----------
    facts : KernelFacts
        With ``cr0``, ``cr3`` and ``cr4`` of the vCPUs' QEMU notes. VMCOREINFO says how many levels the
        kernel's tables have, and which bit marks encrypted memory.
    """
    vmcoreinfo, root = facts.vmcoreinfo, facts.root
    # With secure memory encryption entries and cr3 have a bit that is not part of the address.
    encryption = vmcoreinfo.number("sme_mask") or 0
    kernel = None
    if root is not None:
        five_levels = bool(vmcoreinfo.number("pgtable_l5_enabled"))
        kernel = _long_mode(root, five_levels=five_levels, encryption=encryption)
    spaces = (_of_cpu(cpu, long_mode=True, encryption=encryption) for cpu in _known(facts.cpus))
    return AddressSpaces(kernel, tuple(spaces))
