"""Pages that the host has lost: the dump is written without them, and everybody is told which they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles import judges
from oracles.elf import ElfCore
from oracles.elf_builder import note
from oracles.flattened import Flattened
from oracles.kdump import CODEC_FLAGS, Kdump

import vmdump
from scripted.fake_qemu import PAGE, FakeQemu, Ram
from vmdump.errors import SourceError

MADV_GUARD_INSTALL = 102
LOST = {0: (3, 40, 41), 1 << 32: (0, 63)}
LOST_PFNS = {start // PAGE + page for start, pages in LOST.items() for page in pages}
RANGES = (
    (3 * PAGE, 4 * PAGE),
    (40 * PAGE, 42 * PAGE),
    (1 << 32, (1 << 32) + PAGE),
    ((1 << 32) + 63 * PAGE, (1 << 32) + 64 * PAGE),
)

# What drgn demands of VMCOREINFO before it opens an x86_64 guest.
VMCOREINFO = b"""OSRELEASE=6.1.0-test
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffffffff82610000
KERNELOFFSET=0
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
"""


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[FakeQemu]:
    """A guest with memory in two blocks, of which five pages cannot be read."""
    rams = [Ram(start, written=sorted({*range(0, 64, 3), *range(36, 48)})) for start in LOST]
    with FakeQemu(tmp_path, rams, notes=note(b"VMCOREINFO", 0, VMCOREINFO)) as qemu:
        for ram in qemu.rams:
            for page in LOST[ram.start]:
                try:
                    qemu.ask(
                        "madvise", address=ram.address + page * PAGE, size=PAGE, advice=MADV_GUARD_INSTALL
                    )
                except OSError as error:
                    pytest.skip(f"this kernel has no MADV_GUARD_INSTALL: {error}")
        yield qemu


def expected(qemu: FakeQemu) -> dict[int, bytes]:
    """Every page that can be read, by frame number."""
    pages = {ram.start // PAGE + number: ram.page(number) for ram in qemu.rams for number in range(ram.pages)}
    return {pfn: page for pfn, page in pages.items() if pfn not in LOST_PFNS}


def bits(bitmap: bytes) -> set[int]:
    return {8 * at + bit for at, octet in enumerate(bitmap) if octet for bit in range(8) if octet >> bit & 1}


def check_kdump(path: Path, qemu: FakeQemu) -> None:
    dump = Kdump(path)
    wanted = expected(qemu)
    assert dict(dump.pages()) == wanted
    assert bits(dump.bitmap1) == set(wanted) | LOST_PFNS
    assert bits(dump.bitmap2) == set(wanted)


def ask_others(path: Path, qemu: FakeQemu) -> None:
    """drgn and libkdumpfile read every other page, and say of the lost ones that they are not there."""
    wanted = expected(qemu)
    ranges = [(pfn * PAGE, PAGE) for pfn in wanted]
    for read in (judges.drgn_read, judges.libkdumpfile_read):
        assert read(path, ranges) == list(wanted.values())
    import drgn

    program = drgn.Program()
    program.set_core_dump(path)
    for begin, _ in RANGES:
        with pytest.raises(drgn.FaultError):
            program.read(begin, PAGE, physical=True)


@pytest.mark.parametrize("codec", sorted(CODEC_FLAGS))
def test_standard_kdump(codec: str, damaged: FakeQemu, out: Path) -> None:
    report = vmdump.dump(damaged.source, out / "guest", format=f"kdump-{codec}")
    assert report.unreadable == RANGES
    assert report.excluded_pages == len(LOST_PFNS)
    pages = report.zero_pages + report.plain_pages + report.compressed_pages
    assert pages == len(expected(damaged)) == report.guest_bytes // PAGE - report.excluded_pages
    assert damaged.running
    check_kdump(out / "guest", damaged)


def test_other_readers_of_the_standard_layout(damaged: FakeQemu, out: Path) -> None:
    vmdump.dump(damaged.source, out / "guest", format="kdump-zlib")
    ask_others(out / "guest", damaged)


def test_flattened_kdump(damaged: FakeQemu, out: Path) -> None:
    report = vmdump.dump(damaged.source, out / "guest", format="kdump-zlib", layout="flattened")
    assert report.unreadable == RANGES
    assert report.excluded_pages == len(LOST_PFNS)
    Flattened(out / "guest").rearrange(out / "by-oracle")
    check_kdump(out / "by-oracle", damaged)
    judges.makedumpfile_rearrange(out / "guest", out / "by-makedumpfile")
    check_kdump(out / "by-makedumpfile", damaged)
    ask_others(out / "by-makedumpfile", damaged)


def test_vmdump_reads_its_own(damaged: FakeQemu, out: Path) -> None:
    vmdump.dump(damaged.source, out / "guest", format="kdump-zstd")
    with vmdump.open(out / "guest") as dump:
        for pfn, page in expected(damaged).items():
            assert dump.read(pfn * PAGE, PAGE) == page
        for begin, _ in RANGES:
            with pytest.raises(vmdump.errors.ReadError):
                dump.read(begin, PAGE)


def test_elf_has_zeros(damaged: FakeQemu, out: Path) -> None:
    report = vmdump.dump(damaged.source, out / "guest", format="elf")
    assert report.unreadable == RANGES
    core = ElfCore(out / "guest").check_vmdump_layout()
    for ram in damaged.rams:
        wanted = b"".join(
            bytes(PAGE) if page in LOST[ram.start] else ram.page(page) for page in range(ram.pages)
        )
        assert core.read(ram.start, ram.size) == wanted


@pytest.mark.parametrize("name", ["elf", "kdump-lzo"])
def test_command_line(name: str, damaged: FakeQemu, out: Path, run_vmdump: Any) -> None:
    done = run_vmdump("dump", damaged.source, out / "guest", "-f", name, "--json")
    assert done.returncode == 15
    message = done.stderr.decode()
    assert len(message.splitlines()) == 1
    assert "20" in message  # KiB
    for begin, end in RANGES[:3]:
        assert f"{begin:#x}-{end:#x}" in message
    assert "1 more" in message
    report = json.loads(done.stdout)
    assert [tuple(pair) for pair in report["unreadable"]] == list(RANGES)
    assert (out / "guest").stat().st_size == report["output_bytes"]


def test_guest_that_is_read_twice(damaged: FakeQemu, out: Path) -> None:
    """What was lost in one dump is not counted in the next."""
    with vmdump.open_source(damaged.source) as guest:
        for number in range(2):
            report = vmdump.dump(guest, out / str(number), format="kdump-snappy")
            assert report.excluded_pages == len(LOST_PFNS)
            assert report.unreadable == RANGES


def test_memory_that_is_unplugged_meanwhile(tmp_path: Path, out: Path) -> None:
    """A page that is no longer mapped is no lost page: the layout of the dump is wrong, so there is none."""
    rams = [Ram(0), Ram(1 << 32, pages=4096, written=range(0, 4096, 8))]
    with FakeQemu(tmp_path, rams) as qemu:

        def unplug(done: int, total: int) -> None:
            qemu.ask("munmap", address=qemu.rams[1].address, size=qemu.rams[1].size)

        with pytest.raises(SourceError, match="unplugged") as caught:
            vmdump.dump(qemu.source, out / "guest", format="elf", threads=1, progress=unplug)
        assert caught.value.address is not None
        assert caught.value.address >= 1 << 32
        assert qemu.running
        assert not list(out.iterdir())
