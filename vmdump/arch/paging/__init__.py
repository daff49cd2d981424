"""Page tables: which virtual addresses the guest gives its memory. Pure functions over a reader of tables."""

from __future__ import annotations

from vmdump.arch.paging.tables import (
    AddressSpace,
    AddressSpaces,
    KernelFacts,
    ReadTables,
    Runs,
    TableFormat,
    walk,
)

__all__ = [
    "AddressSpace",
    "AddressSpaces",
    "KernelFacts",
    "ReadTables",
    "Runs",
    "TableFormat",
    "walk",
]
