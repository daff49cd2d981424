"""Every layout against offsets that were counted by hand from the C structures of QEMU and makedumpfile."""

from __future__ import annotations

import pytest

from vmdump.errors import FormatError
from vmdump.formats import elf, flattened, kdump, notes
from vmdump.formats.layout import Layout

SUB_HEADER = {
    "64": {
        "phys_base": 0, "dump_level": 8, "split": 12, "start_pfn": 16, "end_pfn": 24, "offset_vmcoreinfo": 32,
        "size_vmcoreinfo": 40, "offset_note": 48, "size_note": 56, "offset_eraseinfo": 64,
        "size_eraseinfo": 72, "start_pfn_64": 80, "end_pfn_64": 88, "max_mapnr_64": 96, "": 104,
    },
    "32 packed": {
        "phys_base": 0, "dump_level": 4, "split": 8, "start_pfn": 12, "end_pfn": 16, "offset_vmcoreinfo": 20,
        "size_vmcoreinfo": 28, "offset_note": 32, "size_note": 40, "offset_eraseinfo": 44,
        "size_eraseinfo": 52, "start_pfn_64": 56, "end_pfn_64": 64, "max_mapnr_64": 72, "": 80,
    },
    "32 padded": {
        "phys_base": 0, "dump_level": 4, "split": 8, "start_pfn": 12, "end_pfn": 16, "offset_vmcoreinfo": 24,
        "size_vmcoreinfo": 32, "offset_note": 40, "size_note": 48, "offset_eraseinfo": 56,
        "size_eraseinfo": 64, "start_pfn_64": 72, "end_pfn_64": 80, "max_mapnr_64": 88, "": 96,
    },
}  # fmt: skip

HEADER = {
    32: {"header_version": 8, "sysname": 12, "machine": 272, "tv_sec": 404, "status": 412, "block_size": 416,
         "sub_hdr_size": 420, "bitmap_blocks": 424, "max_mapnr": 428, "nr_cpus": 448, "": 452},
    64: {"header_version": 8, "sysname": 12, "machine": 272, "tv_sec": 408, "status": 424, "block_size": 428,
         "sub_hdr_size": 432, "bitmap_blocks": 436, "max_mapnr": 440, "nr_cpus": 460, "": 464},
}  # fmt: skip

CASES: list[tuple[Layout, dict[str, int]]] = [
    *((kdump.SUB_HEADER[form], offsets) for form, offsets in SUB_HEADER.items()),  # type: ignore[index]
    *((kdump.HEADER[bits], offsets) for bits, offsets in HEADER.items()),
    (kdump.PAGE_DESCRIPTOR, {"offset": 0, "size": 8, "flags": 12, "page_flags": 16, "": 24}),
    (elf.EHDR[64], {"e_type": 16, "e_phoff": 32, "e_ehsize": 52, "e_phnum": 56, "": 64}),
    (elf.EHDR[32], {"e_type": 16, "e_phoff": 28, "e_ehsize": 40, "e_phnum": 44, "": 52}),
    (elf.PHDR[64], {"p_type": 0, "p_offset": 8, "p_paddr": 24, "p_memsz": 40, "": 56}),
    (elf.PHDR[32], {"p_type": 0, "p_offset": 4, "p_paddr": 12, "p_memsz": 20, "": 32}),
    (elf.SHDR[64], {"sh_info": 44, "": 64}),
    (elf.SHDR[32], {"sh_info": 28, "": 40}),
    (flattened.FILE_HEADER, {"type": 16, "version": 24, "": 32}),
    (flattened.RECORD, {"offset": 0, "size": 8, "": 16}),
    (notes.NHDR, {"n_namesz": 0, "n_descsz": 4, "n_type": 8, "": 12}),
]


@pytest.mark.parametrize(("layout", "offsets"), CASES)
def test_offsets(layout: Layout, offsets: dict[str, int]) -> None:
    for byteorder in ("little", "big"):
        dtype = layout.dtype(byteorder)  # type: ignore[arg-type]
        assert dtype.fields is not None
        found = {name: dtype.fields[name][1] for name in offsets if name}
        assert {**found, "": dtype.itemsize} == offsets


def test_byte_order_is_that_of_the_guest() -> None:
    layout = kdump.PAGE_DESCRIPTOR
    values = {"offset": 0x0102030405060708, "size": 0x11121314, "flags": 0x21222324, "page_flags": 0}
    big = layout.pack("big", **values)
    assert big.hex() == "010203040506070811121314212223240000000000000000"
    assert layout.unpack(big, 0, "big") == values
    assert layout.unpack(layout.pack("little", **values), 0, "little") == values


def test_value_that_does_not_fit_and_buffer_that_is_short() -> None:
    with pytest.raises(OverflowError):
        elf.EHDR[64].pack("little", e_phnum=0x10000)
    for offset in (-1, 1, 1 << 70):
        with pytest.raises(FormatError):
            kdump.PAGE_DESCRIPTOR.unpack(bytes(24), offset, "little")
