"""A paused guest: what vmdump writes of it is what QEMU writes, page by page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from oracles import judges
from oracles.elf import ElfCore
from oracles.kdump import Kdump

from live.dumping import MIB, succeeds, until
from live.guests import Guest

PAGE = 4096
MakeGuest = Callable[..., Guest]


def blocks(core: ElfCore) -> list[tuple[int, int]]:
    return sorted((load.paddr, load.memsz) for load in core.loads)


def bytes_of(core: ElfCore, paddr: int) -> np.ndarray:
    """A block's memory, without its zeros behind the file's bytes."""
    (load,) = (load for load in core.loads if load.paddr == paddr)
    return np.frombuffer(core.load_view(load), np.uint8)


def check_elf(ours: ElfCore, theirs: ElfCore) -> None:
    """Every block and every byte of it is QEMU's."""
    ours.check_vmdump_layout()
    assert (ours.bits, ours.byteorder, ours.machine) == (theirs.bits, theirs.byteorder, theirs.machine)
    assert blocks(ours) == blocks(theirs)
    for paddr, size in blocks(theirs):
        mine, truth = bytes_of(ours, paddr), bytes_of(theirs, paddr)
        assert len(truth) == size
        for begin in range(0, size, 16 * MIB):
            piece = mine[begin : begin + 16 * MIB]
            wanted = truth[begin : begin + 16 * MIB]
            assert np.array_equal(piece, wanted[: len(piece)]), f"in the 16 MiB from {paddr + begin:#x} on"
            assert not wanted[len(piece) :].any(), f"memory that is no zeros is left out of {paddr:#x}"


def check_kdump(kdump: Kdump, theirs: ElfCore, *, ahead: bool = False) -> int:
    """Every page of QEMU's is in it, and no other; how many of them hold something."""
    kdump.check(ahead=ahead)
    pfns = [pfn for paddr, size in blocks(theirs) for pfn in range(paddr // PAGE, -(-(paddr + size) // PAGE))]
    assert np.array_equal(kdump.pfns, np.unique(np.array(pfns, np.uint64)))
    assert not kdump.data_at(kdump.data_offset, PAGE).strip(b"\0")
    filled = 0
    offsets = kdump.descriptors["offset"].tolist()
    pages = dict(zip(kdump.pfns.tolist(), range(len(offsets)), strict=True))
    for paddr, size in blocks(theirs):
        assert paddr % PAGE == size % PAGE == 0
        truth = bytes_of(theirs, paddr).reshape(-1, PAGE)
        dirty = truth.any(axis=1).tolist()
        for number, holds in enumerate(dirty):
            index = pages[paddr // PAGE + number]
            if not holds and offsets[index] == kdump.data_offset:
                continue  # the shared page of zeros, which is looked at once
            filled += holds
            assert kdump.page_at(index) == truth[number].tobytes(), f"page {paddr // PAGE + number:#x}"
    return filled


def check_notes(ours: bytes, theirs: bytes, *, found: bool = False) -> None:
    """The notes are QEMU's, `found`: and one more, the VMCOREINFO of which it does not know."""
    if not found:
        assert ours == theirs
        return
    assert ours.startswith(theirs)
    assert b"VMCOREINFO" not in theirs
    assert b"VMCOREINFO" in ours[len(theirs) :]


def check_same(guest: Guest, scratch: Path, *, found: bool = False) -> tuple[ElfCore, int]:
    """Dump a paused guest in both formats and judge them by QEMU's; that, and its full pages."""
    state = guest.monitor.status()
    assert not guest.running()
    begin = (guest.mapped(), guest.allocated())
    report = succeeds(guest, scratch / "ours.elf", "-f", "elf")
    assert (report["fuzzy"], report["paused_seconds"], report["unreadable"]) == (False, 0, [])
    report = succeeds(guest, scratch / "ours.kdump")
    assert (report["fuzzy"], report["paused_seconds"], report["unreadable"]) == (False, 0, [])
    assert guest.monitor.status() == state
    growth = (guest.mapped() - begin[0], guest.allocated() - begin[1])
    assert max(growth) < MIB, f"the dump made the guest {growth} bytes bigger"
    guest.monitor.dump(scratch / "theirs.elf")
    theirs = ElfCore(scratch / "theirs.elf")
    check_elf(ours := ElfCore(scratch / "ours.elf"), theirs)
    check_notes(ours.notes, theirs.notes, found=found)
    kdump = Kdump(scratch / "ours.kdump")
    check_notes(kdump.notes, theirs.notes, found=found)
    return theirs, check_kdump(kdump, theirs)


def test_a_linux_guest_with_its_memory_in_a_file(running_guest: Guest, scratch: Path) -> None:
    running_guest.monitor.execute("stop")
    theirs, filled = check_same(running_guest, scratch)
    assert b"OSRELEASE=" in theirs.notes
    assert filled * PAGE > 40 * MIB


def test_a_linux_guest_with_private_memory(private_guest: Guest, scratch: Path) -> None:
    private_guest.monitor.execute("stop")
    try:
        _, filled = check_same(private_guest, scratch, found=True)
        assert filled * PAGE > 100 * MIB
    finally:
        private_guest.monitor.execute("cont")


@pytest.fixture
def blob(scratch: Path) -> tuple[Path, int]:
    """5 MiB of random bytes with a few pages of zeros between them, and how many pages are full."""
    data = bytearray(os.urandom(5 * MIB))
    for page in (0, 7, 8, 500):
        data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    path = scratch / "blob"
    path.write_bytes(data)
    return path, 5 * MIB // PAGE - 4


class Shape(NamedTuple):
    """How a guest gets its memory."""

    memory: str
    share: str
    extra: tuple[str, ...]
    loads: tuple[int, ...]
    """Where the blob goes."""


SHAPES = {
    "memfd": Shape("192M", "memfd", (), (16 * MIB, 150 * MIB)),
    "private": Shape("192M", "private", (), (16 * MIB, 150 * MIB)),
    "dimms": Shape(
        "128M",
        "file",
        (
            *("-m", "slots=3,maxmem=2G"),
            *("-object", "memory-backend-ram,id=one,size=128M,share=on"),
            *("-device", "pc-dimm,id=dimm1,memdev=one"),
            *("-object", "memory-backend-ram,id=two,size=128M"),
            *("-device", "pc-dimm,id=dimm2,memdev=two"),
            *("-object", "memory-backend-memfd,id=three,size=128M,share=on"),
            *("-device", "pc-dimm,id=dimm3,memdev=three,addr=0x180000000"),
        ),
        (16 * MIB, (4096 + 5) * MIB, (4096 + 128 + 100) * MIB, 6144 * MIB),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_memory_of_every_kind(
    name: str, bare_guest: MakeGuest, blob: tuple[Path, int], scratch: Path
) -> None:
    path, full = blob
    shape = SHAPES[name]
    # The loader is a device that knows nothing of what the memory is made of.
    loaders = [
        word
        for address in shape.loads
        for word in ("-device", f"loader,file={path},addr={address:#x},force-raw=on")
    ]
    guest = bare_guest(shape.memory, share=shape.share, extra=(*shape.extra, *loaders))
    assert guest.monitor.status() == "prelaunch"
    _, filled = check_same(guest, scratch)
    assert filled >= full * len(shape.loads)
    assert guest.monitor.status() == "prelaunch"


def test_devices_with_memory(bare_guest: MakeGuest, scratch: Path) -> None:
    """A VGA card's memory is mapped by the BIOS, into the hole below 4 GiB."""
    guest = bare_guest(
        "64M",
        extra=(
            *("-device", "VGA,vgamem_mb=16"),
            *("-object", "memory-backend-memfd,id=shm,size=32M,share=on"),
            *("-device", "ivshmem-plain,memdev=shm"),
        ),
    )
    guest.monitor.execute("cont")

    def mapped() -> bool:
        text = guest.monitor.execute("human-monitor-command", command_line="info mtree -f")
        return "vga.vram" in text and "shm" in text

    until(mapped, "the BIOS has mapped the card's memory")
    guest.monitor.execute("stop")
    theirs, _ = check_same(guest, scratch)
    assert len(theirs.loads) > 3


def _data_runs(path: Path) -> Iterator[tuple[int, int]]:
    """What a file has not as holes."""
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            yield begin, end


LOW = 2 << 30
"""Where a q35's memory of 4 GiB is cut in two; the rest is at 4 GiB."""


def test_both_sides_of_the_hole_below_4_gib(linux_guest: Guest, scratch: Path) -> None:
    """The guest's RAM file is the judge: QEMU's own dump of 4 GiB takes half a minute."""
    begin = (linux_guest.mapped(), linux_guest.allocated())
    succeeds(linux_guest, scratch / "elf", "-f", "elf")
    succeeds(linux_guest, scratch / "kdump")
    growth = (linux_guest.mapped() - begin[0], linux_guest.allocated() - begin[1])
    assert max(growth) < MIB, f"the dump made the guest {growth} bytes bigger"

    core, kdump = ElfCore(scratch / "elf").check_vmdump_layout(), Kdump(scratch / "kdump").check()
    # Behind the two blocks there is only the BIOS's ROM.
    sizes = dict(blocks(core))
    assert sizes[4 << 30] == LOW
    assert max(paddr + size for paddr, size in sizes.items() if paddr < LOW) == LOW
    pages = dict(zip(kdump.pfns.tolist(), range(len(kdump.pfns)), strict=True))
    assert sum(sizes.values()) == len(pages) * PAGE

    ram = linux_guest.ram_path()
    assert ram is not None
    judged, compared = set(), 0
    with ram.open("rb") as file:
        for first, last in _data_runs(ram):
            for offset in range(first, last, PAGE):
                address = offset if offset < LOW else offset - LOW + (4 << 30)
                truth = os.pread(file.fileno(), PAGE, offset)
                if _is_rom(address):
                    continue
                pfn = address // PAGE
                judged.add(pfn)
                assert core.read(address, PAGE) == truth, f"elf, {address:#x}"
                assert kdump.page_at(pages[pfn]) == truth, f"kdump, {address:#x}"
                compared += any(truth)
    assert compared * PAGE > 300 * MIB
    # All else is holes.
    shared = kdump.descriptors["offset"] == kdump.data_offset
    rest = [pfn for pfn, zero in zip(kdump.pfns.tolist(), shared.tolist(), strict=True) if not zero]
    assert all(pfn in judged or _is_rom(pfn * PAGE) for pfn in rest)


def _is_rom(address: int) -> bool:
    """Whether the BIOS or a card stands before the RAM of this address."""
    return 0xA0000 <= address < 0x100000 or 0xFF000000 <= address < 0x100000000


def test_the_readers_see_the_same_guest(linux_guest: Guest, scratch: Path) -> None:
    judges.require("libkdumpfile")
    succeeds(linux_guest, scratch / "kdump")
    ram = linux_guest.ram_path()
    assert ram is not None
    places = [*range(16 * MIB, LOW, 97 * MIB), *range(4 << 30, 6 << 30, 89 * MIB)]
    with ram.open("rb") as file:
        truth = [os.pread(file.fileno(), 2 * PAGE, at if at < LOW else at - (4 << 30) + LOW) for at in places]
    assert any(map(any, truth))
    ranges = [(place, 2 * PAGE) for place in places]
    assert judges.libkdumpfile_read(scratch / "kdump", ranges) == truth
    assert judges.drgn_read(scratch / "kdump", ranges) == truth
