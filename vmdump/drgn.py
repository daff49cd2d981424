"""drgn over any guest that vmdump opens.

drgn is imported when it is used: ``pip install 'vmdump[drgn]'`` brings it along.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

from vmdump.errors import CapabilityError, FormatError, ReadError, VmdumpError, naming_shortages
from vmdump.integrations.lasting import LastingGuest
from vmdump.units import ADDRESS_LIMIT

if TYPE_CHECKING:
    from types import ModuleType

    from drgn import Platform, Program

    from vmdump.guest.guest import Guest
    from vmdump.opening import AnySource

__all__ = ["program"]

_ARCHITECTURES = {
    "aarch64": "AARCH64",
    "arm": "ARM",
    "i386": "I386",
    "loongarch64": "LOONGARCH64",
    "ppc64": "PPC64",
    "ppc64le": "PPC64",
    "riscv32": "RISCV32",
    "riscv64": "RISCV64",
    "s390x": "S390X",
    "x86_64": "X86_64",
}
"""drgn's names of architectures; of another one, only physical memory and numbers mean something to it."""
_WALKED_BY_DRGN = ("aarch64", "s390x", "x86_64")
"""Whose page tables drgn 0.3 walks without debugging information, if there is VMCOREINFO."""
_CACHED_PAGES = 1024
"""Of a guest that does not change. drgn reads tables byte by byte: a kernel's symbols by 350000 reads."""


@naming_shortages()
def program(
    source: AnySource,
    *,
    vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
    search: bool = True,
) -> Program:
    """Give drgn's view of a guest: a dump of any kind, raw memory, or a live guest.

    The program has the guest's platform, its memory by physical and virtual addresses, and VMCOREINFO where
    the guest is Linux. It has no debugging information yet: ``load_debug_info([vmlinux])`` gives it names of
    variables and types, and :func:`drgn.helpers.linux.kallsyms.load_vmlinux_kallsyms` symbols without any.

    A live guest runs on, and what is read is as it is at that moment. To read it as of one moment, give the
    paused guest that :meth:`vmdump.Source.held` gives, and use the program inside that context.

    Parameters
    ----------
    source : str, path, sequence of paths, Source, Guest, buffer, or list of blocks
        As for :func:`vmdump.dump`. What is named is opened for the program, and closed when the program
        and all its objects are gone. What is open already stays the caller's: it has to be open for as long
        as the program is used.
    vmcoreinfo : bytes, str or path, optional
        As for :func:`vmdump.dump`.
    search : bool
        Look for VMCOREINFO in the guest's memory where nothing tells it: that may read all of it.

    Returns
    -------
    drgn.Program
        Several may be used at once, each by one thread at a time, as drgn demands. Reading memory that is not
        there raises :class:`drgn.FaultError`, whose text says why: the page was excluded when the dump was
        made (:func:`vmdump.page_at` tells what it was used for), is damaged, or there is no memory.

    Raises
    ------
    CapabilityError
        drgn is not installed, or is older than 0.3.
    FormatError
        drgn does not take the VMCOREINFO.
    VmdumpError
        As of :func:`vmdump.open_source`.

    Examples
    --------
    >>> import vmdump.drgn
    >>> prog = vmdump.drgn.program("synthetic:64M?seed=1")
    >>> prog.platform.arch.name, len(prog.read(0, 4096, physical=True))
    ('X86_64', 4096)
    """
    drgn = _load()
    lasting = LastingGuest(source, vmcoreinfo=vmcoreinfo, search=search)
    guest = lasting.guest
    made: Program = drgn.Program(_platform(drgn, guest))
    # One segment for all blocks: a file can claim hundreds of thousands, and vmdump says what a hole is.
    end = min(guest.blocks[-1].end, ADDRESS_LIMIT - 1)
    made.add_memory_segment(0, end, _Reader(lasting, drgn.FaultError, virtual=False), True)
    known = guest.vmcoreinfo
    if known:
        try:
            made.set_linux_kernel_custom(known.text.split(b"\0", 1)[0], guest.changes)
        except Exception as error:  # of whatever class: a number that is none, an architecture without tables
            raise FormatError(f"VMCOREINFO: drgn does not take it: {error}") from error
    if not known or guest.arch.name not in _WALKED_BY_DRGN:
        space = (1 << guest.arch.elf_class) - 1
        made.add_memory_segment(0, space, _Reader(lasting, drgn.FaultError, virtual=True), False)
    return made


def _load() -> ModuleType:
    """Import drgn."""
    try:
        import drgn
    except ImportError as error:
        raise CapabilityError(f"drgn cannot be imported ({error}): pip install 'vmdump[drgn]'") from error
    if not hasattr(drgn.Program, "set_linux_kernel_custom"):
        raise CapabilityError("drgn is older than 0.3: pip install 'vmdump[drgn]'")
    found: ModuleType = drgn
    return found


def _platform(drgn: ModuleType, guest: Guest) -> Platform:
    flags = drgn.PlatformFlags(0)
    if guest.arch.elf_class == 64:
        flags |= drgn.PlatformFlags.IS_64_BIT
    if guest.byteorder == "little":
        flags |= drgn.PlatformFlags.IS_LITTLE_ENDIAN
    name = _ARCHITECTURES.get(guest.arch.name, "UNKNOWN")
    platform: Platform = drgn.Platform(drgn.Architecture[name], flags)
    return platform


class _Reader:
    """What drgn calls to read memory: the program holds it, and it holds the guest."""

    def __init__(self, lasting: LastingGuest, fault: type[Exception], *, virtual: bool) -> None:
        guest = lasting.guest
        self._lasting = lasting
        self._fault = fault
        self._size = guest.page_size
        self._read = guest.read_virtual if virtual else guest.read
        self._page = None if guest.changes else lru_cache(_CACHED_PAGES)(self._read_page)

    def _read_page(self, number: int) -> bytes:
        return self._read(number * self._size, self._size)

    def __call__(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        number, begin = divmod(address, self._size)
        try:
            if self._page is not None and begin + count <= self._size:
                # Another part of the page may be in no block.
                with suppress(ReadError):
                    return self._page(number)[begin : begin + count]
            return self._read(address, count)
        except VmdumpError as error:
            # What type of page was excluded is not said: to find out takes 40 ms, and programs meet many.
            raise self._fault(error.args[0], address) from error
