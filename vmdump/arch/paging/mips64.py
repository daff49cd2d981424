"""What 64-bit MIPS maps without tables: xkphys, kseg0 and kseg1.

Source: MIPS64 Privileged Resource Architecture, chapter 4. The entries of Linux' tables differ from one build
of it to another, and VMCOREINFO does not tell them.
"""

from __future__ import annotations

import numpy as np

from vmdump.arch.paging.tables import AddressSpaces, KernelFacts, Runs

__all__ = ["mips64_spaces"]

_XKPHYS = 0b10 << 62
_XKPHYS_BITS = 59
"""Of a physical address; the three above them say how it is cached."""
_KSEG0, _KSEG1 = 0xFFFFFFFF80000000, 0xFFFFFFFFA0000000
_KSEG_SIZE = 1 << 29


def mips64_spaces(facts: KernelFacts) -> AddressSpaces:
    """Tell what every processor maps.

    Parameters
    ----------
    facts : KernelFacts
        Not needed.
    """
    begins = [_XKPHYS + (caches << _XKPHYS_BITS) for caches in range(8)] + [_KSEG0, _KSEG1]
    sizes = np.array([1 << _XKPHYS_BITS] * 8 + [_KSEG_SIZE] * 2, np.uint64)
    return AddressSpaces(direct=Runs(np.array(begins, np.uint64), np.zeros_like(sizes), sizes, sizes))
