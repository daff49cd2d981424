"""Raw memory of which nothing says where it is: its kernel may, or the QEMU that it belongs to.

Linux on x86_64 maps all of its memory in one piece, at a distance that is random but the same for all of
it. What its page tables map there is the memory that the machine has, to within what firmware keeps for
itself; and the tables are at the right places only in the right layout.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vmdump.errors import CapabilityError, LayoutError, TranslationError
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.blocks import MIN_PAGE_SIZE
from vmdump.guest.files import GuestFile
from vmdump.guest.guest import Guest
from vmdump.guest.linux.find_vmcoreinfo import vmcoreinfo_texts
from vmdump.sources.raw.machines import Piece, Pieces, fitting_layouts, machine_layouts, split_at
from vmdump.sources.raw.places import describe, place
from vmdump.units import ADDRESS_LIMIT, format_size

__all__ = ["MAX_KERNELS", "check_kernel", "check_place"]

_4G = 4 << 30
_STEP = 64 << 20
"""Of what other machines may have below 4 GiB; so many layouts are tried where no usual one fits."""
MAX_KERNELS = 64
"""Texts of VMCOREINFO that are tried; a guest with nested ones has some ten."""
_FIRST = 1 << 20
"""The direct map has memory below it; no device is there that is mapped elsewhere in one piece with more."""
_OUTSIDE = 2 << 20
"""Bytes that Linux may map directly and that are not memory: less than the last of its large pages."""
_UNMAPPED = 8
"""Of the memory a part may be unmapped; firmware takes a hundredth."""
_BASES = ("PHYS_OFFSET", "phys_ram_base")
"""Numbers in VMCOREINFO of AArch64 and RISC-V that are the address of the first memory."""


def check_place(source: Guest, files: Sequence[GuestFile]) -> None:
    """Refuse raw memory, taken to be at 0 in one piece, that is not, or may not be; all of it may be read.

    Parameters
    ----------
    source : Guest
        The memory, at 0.
    files : sequence of GuestFile
        That it is in.

    Raises
    ------
    LayoutError
        A machine of this size has a hole, and its kernel does not say that this one has none; its kernel, or
        the QEMU that has mapped the file, says that the memory is elsewhere.
    SourceError
        The files cannot be read.
    """
    from vmdump.sources.raw.emulator import find_emulator  # a file whose kernel is asked has no need of it

    doubt = _Doubt(source, files)
    emulator = find_emulator(files[0], source.arch.name) if len(files) == 1 else None
    if emulator is not None and len(emulator.layouts) == 1:
        if emulator.layouts[0] != doubt.flat:
            doubt.refuse(emulator.options, f"{emulator.text}, which is", emulator.hint)
        return
    found = doubt.ask_kernels(vmcoreinfo_texts(source))
    if found is None and any(len(pieces) > 1 for pieces in doubt.fitting):
        doubt.refuse("", emulator.text if emulator else "")
    if found is not None and found != doubt.flat:
        doubt.refuse_for_kernel(found)


def check_kernel(guest: Guest, files: Sequence[GuestFile]) -> None:
    """Refuse raw memory, taken to be in one piece at 0, whose kernel says that it is not.

    Parameters
    ----------
    guest : Guest
        The memory, at 0, with the kernel's VMCOREINFO.
    files : sequence of GuestFile
        That it is in.

    Raises
    ------
    LayoutError
        The kernel's page tables, or its place, fit another layout and not this one.
    SourceError
        The files cannot be read.
    """
    doubt = _Doubt(guest, files)
    found = doubt.ask_kernels([guest.vmcoreinfo.text])
    if found is not None and found != doubt.flat:
        doubt.refuse_for_kernel(found)


class _Doubt:
    """Layouts that a file may have.

    Attributes
    ----------
    flat : tuple of Piece
        All at 0.
    fitting : dict of (tuple of Piece) to str
        Those of usual machines, and the name of one.
    """

    def __init__(self, source: Guest, files: Sequence[GuestFile]) -> None:
        self._source = source
        self._files = files
        self._size = sum(file.size for file in files)
        self.flat: Pieces = (Piece(0, self._size, 0),)
        self.fitting = fitting_layouts(source.arch.name, self._size)

    def ask_kernels(self, texts: Iterable[bytes]) -> Pieces | None:
        """Give the layout that one of these kernels confirms, `flat` first."""
        seen: set[bytes] = set()
        for text in texts:
            if text in seen:
                continue
            seen.add(text)
            found = self._ask_kernel(text)
            if found is not None or len(seen) == MAX_KERNELS:
                return found
        return None

    def _ask_kernel(self, text: bytes) -> Pieces | None:
        """Give the layout that page tables fit best; where none are known, the only one that is possible."""
        usual = dict.fromkeys((self.flat, *self.fitting, *self._told(text)))
        for layouts in (usual, self._unusual()):
            guests = {pieces: guest for pieces in layouts if (guest := self._guest(pieces, text)) is not None}
            if self._source.arch.name == "x86_64":
                misfits = {pieces: _misfit(guest, pieces) for pieces, guest in guests.items()}
                found = min(misfits, key=misfits.__getitem__, default=None)
                if found is not None and misfits[found] < self._size:
                    return found
            elif self._source.arch.kernel_to_phys_is_sure and len(guests) == 1:
                return next(iter(guests))
        return None

    def _guest(self, pieces: Pieces, text: bytes) -> Guest | None:
        """Give the guest in this layout; None if the kernel's ``init_uts_ns`` is not where it says."""
        blocks = sorted(place(pieces, self._files), key=lambda block: block.start)
        if blocks[-1].end > ADDRESS_LIMIT:
            return None
        guest = Guest(blocks, self._source.arch, vmcoreinfo=text)
        return guest if guest.kernel.names_in(guest.read) is not None else None

    def _told(self, text: bytes) -> Iterator[Pieces]:
        for name in _BASES:
            base = Vmcoreinfo(text).number(name)
            if base is not None and 0 <= base < ADDRESS_LIMIT and base % MIN_PAGE_SIZE == 0:
                yield (Piece(base, self._size, 0),)

    def _unusual(self) -> Iterator[Pieces]:
        """Give layouts of other emulators, or with max-ram-below-4g."""
        if self._source.arch.name == "x86_64":
            for low in range(_STEP, min(self._size, _4G), _STEP):
                yield split_at(self._size, low)

    def refuse_for_kernel(self, found: Pieces) -> None:
        """Raise LayoutError: the kernel confirms this layout."""
        by = "page tables" if self._source.arch.name == "x86_64" else "addresses"
        self.refuse(self._options(found), f"its kernel's {by} confirm")

    def refuse(self, confirmed: str, by: str, hint: str = "") -> None:
        """Raise LayoutError; `by` says what confirms a layout, or what else is known."""
        name, arch = self._files[0].path, self._source.arch.name
        others = {self._options(pieces): pieces for pieces in self.fitting}
        texts = []
        for option, pieces in others.items():
            if option == confirmed or pieces == self.flat:
                continue
            plain = option != describe(pieces) and sum(piece.size for piece in pieces) == self._size
            texts.append(f"{option} ({describe(pieces)})" if plain else option)
        size = f"{format_size(self._size)} of {arch} memory"
        if confirmed:
            way = f"{size}, not all at 0: {by} {shlex.quote(f'raw:{name}?{confirmed}')}"
            more = f"; of this size is also {', '.join(texts)}" if texts else ""
        else:
            way = f"{size} may have a hole, and nothing says where" + (f" ({by})" if by else "")
            more = f"; write raw:PATH?LAYOUT, where LAYOUT is {', '.join(texts)}"
        end = "; base=0 takes it as it is" + (f"; {hint}" if hint else "")
        layouts = tuple(dict.fromkeys(((confirmed,) if confirmed else ()) + tuple(others)))
        raise LayoutError(f"{name}: {way}{more}{end}", layouts=layouts, confirmed=confirmed)

    def _options(self, pieces: Pieces) -> str:
        machine = self.fitting.get(pieces)
        if machine and len(machine_layouts(self._source.arch.name, machine, self._size)) == 1:
            return f"machine={machine}"
        return describe(pieces)


def _misfit(guest: Guest, pieces: Pieces) -> int:
    """Count the bytes in which Linux' direct map, by its page tables in this layout, is not the layout.

    Returns
    -------
    int
        All bytes of the layout, where it is beyond what firmware and large pages explain.
    """
    total = sum(piece.size for piece in pieces)
    try:
        runs = guest.virtual.kernel_half()
    except (CapabilityError, TranslationError):
        return total
    distances, of_run = np.unique(runs.virtual - runs.physical, return_inverse=True)
    # What is mapped for devices may be more: 256 MiB of PCI's configuration space on each q35.
    low = np.unique(of_run[runs.physical < np.uint64(_FIRST)])
    if not low.size:
        return total
    bytes_at = np.bincount(of_run, weights=runs.size.astype(np.float64), minlength=distances.size)
    direct = runs.take(of_run == low[bytes_at[low].argmax()])
    inside = sum(
        int(direct.clipped(piece.address, piece.address + piece.size).size.sum()) for piece in pieces
    )
    outside, unmapped = int(direct.size.sum()) - inside, total - inside
    return outside + unmapped if outside <= _OUTSIDE and unmapped * _UNMAPPED <= total else total
