"""Guests much larger than what they hold: raw memory with page tables, struct pages and VMCOREINFO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from guests import KEYS_6_12, LRU, structs, vmcoreinfo

GIB = 1 << 30
_PAGE = 4096
_TABLES = 0x10000
_KERNEL, _VMEMMAP = 0xFFFFFFFF80000000, 0xFFFFEA0000000000
_PRESENT, _LARGE = 0x63, 0xE3
_STRUCT = 64


def make_sparse_guest(path: Path, size: int, data: int) -> Path:
    """Write a raw file, a hole but for `data` bytes, and what its kernel tells of them.

    Five of eight of the pages that hold data are page cache. Struct pages lie from 1 GiB on, and those of the
    hole are holes.

    Parameters
    ----------
    path : Path
        The file.
    size, data : int
        Bytes: at least 2 GiB, and at most 1 GiB.

    Returns
    -------
    Path
        VMCOREINFO in a file.
    """
    kernel, vmemmap = _TABLES + _PAGE, _TABLES + 2 * _PAGE
    pages = structs(data // _PAGE)
    cache = pages[len(pages) // 8 : 6 * len(pages) // 8]
    cache["flags"], cache["mapping"] = LRU, _PAGE
    random = np.random.default_rng(1)
    with path.open("wb") as file:
        file.truncate(size)
        for begin in range(1 << 20, data, 1 << 20):
            file.seek(begin)
            file.write(random.integers(0, 256, 1 << 19, np.uint8).tobytes())
            file.write(b"text of a page cache".ljust(32) * (1 << 14))
        for place, entries in (
            (_TABLES, {_index(_VMEMMAP, 39): vmemmap | _PRESENT, _index(_KERNEL, 39): kernel | _PRESENT}),
            (kernel, {_index(_KERNEL, 30): _LARGE}),
            (vmemmap, {at: (1 + at) * GIB | _LARGE for at in range(-(-size // _PAGE * _STRUCT // GIB))}),
        ):
            table = np.zeros(_PAGE // 8, "<u8")
            table[list(entries)] = list(entries.values())
            file.seek(place)
            file.write(table.tobytes())
        file.seek(GIB)
        file.write(pages.tobytes())
    keys = {
        **KEYS_6_12,
        "SYMBOL(vmemmap)": _VMEMMAP,
        "SYMBOL(init_top_pgt)": _KERNEL + _TABLES,
        "SYMBOL(swapper_pg_dir)": _KERNEL + _TABLES,
        "NUMBER(phys_base)": 0,
        "NUMBER(pgtable_l5_enabled)": 0,
    }
    told = path.with_suffix(".vmcoreinfo")
    told.write_bytes(vmcoreinfo(keys).replace(b"_stext)=1000", b"_stext)=%x" % (_KERNEL + (16 << 20))))
    return told


def _index(address: int, shift: int) -> int:
    return address >> shift & 511
