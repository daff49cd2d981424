"""Raw memory at its addresses: machines' rules, lists of ranges, several files."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from helpers.raw_files import ranges, sparse
from hypothesis import given
from hypothesis import strategies as st

import vmdump
from vmdump.errors import LayoutError, RequestError
from vmdump.sources.rawfile import RawPart, RawSource

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30

# Read off `info mtree -f` of QEMU 7.2 with a memory backend of this size.
LAYOUTS = (
    ("q35", 2815 * MIB, [(0, 0xAFF00000)]),
    ("q35", 2816 * MIB, [(0, 0x80000000), (0x100000000, 0x130000000)]),
    ("q35", 4608 * MIB, [(0, 0x80000000), (0x100000000, 0x1A0000000)]),
    ("pc-q35-2.10", 3584 * MIB, [(0, 0x80000000), (0x100000000, 0x160000000)]),
    ("pc", 3583 * MIB, [(0, 0xDFF00000)]),
    ("pc", 3584 * MIB, [(0, 0xC0000000), (0x100000000, 0x120000000)]),
    ("pc-i440fx-2.0", 3584 * MIB, [(0, 0xC0000000), (0x100000000, 0x120000000)]),
    ("pc-i440fx-1.7", 3584 * MIB, [(0, 0xE0000000)]),
    ("pc-i440fx-1.7", 3585 * MIB, [(0, 0xE0000000), (0x100000000, 0x100100000)]),
    ("isapc", 4096 * MIB, [(0, 0xE0000000), (0x100000000, 0x120000000)]),
    ("microvm", 3 * GIB, [(0, 0xC0000000)]),
    ("microvm", 3073 * MIB, [(0, 0xC0000000), (0x100000000, 0x100100000)]),
    ("microvm", 1024 * GIB, [(0, 0xC0000000), (0x100000000, 0x10040000000)]),
    ("q35&max_ram_below_4g=100M", 256 * MIB, [(0, 0x6400000), (0x100000000, 0x109C00000)]),
    ("q35&max_ram_below_4g=0x8001000", 256 * MIB, [(0, 0x8001000), (0x100000000, 0x107FFF000)]),
    ("q35&max_ram_below_4g=2560M", 2700 * MIB, [(0, 0xA0000000), (0x100000000, 0x108C00000)]),
    ("q35&max_ram_below_4g=4G", 3500 * MIB, [(0, 0x80000000), (0x100000000, 0x15AC00000)]),
    ("q35&max_ram_below_4g=0", 3 * GIB, [(0, 0x80000000), (0x100000000, 0x140000000)]),
    ("pc&max_ram_below_4g=3000M", 3 * GIB, [(0, 0xBB800000), (0x100000000, 0x104800000)]),
    ("pc&max_ram_below_4g=3400M", 3399 * MIB, [(0, 0xD4700000)]),
    ("pc&max_ram_below_4g=3400M", 3400 * MIB, [(0, 0xC0000000), (0x100000000, 0x114800000)]),
    ("pc&max_ram_below_4g=4G", 3600 * MIB, [(0, 0xE1000000)]),
    ("pc&max_ram_below_4g=4G", 4 * GIB, [(0, 0xC0000000), (0x100000000, 0x140000000)]),
    ("pc-i440fx-1.7&max_ram_below_4g=3400M", 3401 * MIB, [(0, 0xD4800000), (0x100000000, 0x100100000)]),
    # PCI's 64-bit window of 32 (pc: 2) GiB does not yet reach the range that AMD's IOMMU needs.
    ("q35", 978 * GIB, [(0, 0x80000000), (0x100000000, 0xF500000000)]),
    ("pc", 1009 * GIB, [(0, 0xC0000000), (0x100000000, 0xFC80000000)]),
    ("pc-q35-7.0", 1024 * GIB, [(0, 0x80000000), (0x100000000, 0x10080000000)]),
    ("virt&arch=aarch64", 300 * GIB, [(0x40000000, 0x4B40000000)]),
    ("virt-2.6&arch=aarch64", 128 * MIB, [(0x40000000, 0x48000000)]),
    ("sbsa-ref&arch=aarch64", 4 * GIB, [(0x10000000000, 0x10100000000)]),
    ("xlnx-zcu102&arch=aarch64", 4 * GIB, [(0, 0x80000000), (0x800000000, 0x880000000)]),
    ("virt&arch=arm", 1 * GIB, [(0x40000000, 0x80000000)]),
    ("vexpress-a9&arch=arm", 1 * GIB, [(0x60000000, 0xA0000000)]),
    ("virt&arch=riscv64", 4 * GIB, [(0x80000000, 0x180000000)]),
    ("sifive_u&arch=riscv64", 128 * MIB, [(0x80000000, 0x88000000)]),
    ("virt&arch=loongarch64", 1025 * MIB, [(0, 0x10000000), (0x90000000, 0xC0100000)]),
    ("malta&arch=mips", 257 * MIB, [(0, 0x10000000), (0x80000000, 0x90100000)]),
    ("malta&arch=mips", 1 * GIB, [(0, 0x10000000), (0x20000000, 0x40000000), (0x80000000, 0xC0000000)]),
    ("pseries&arch=ppc64", 4 * GIB, [(0, 0x100000000)]),
    ("mac99&arch=ppc", 128 * MIB, [(0, 0x8000000)]),
    ("s390-ccw-virtio&arch=s390x", 4 * GIB, [(0, 0x100000000)]),
)


@pytest.mark.parametrize(("machine", "size", "expected"), LAYOUTS)
def test_machines(machine: str, size: int, expected: list[tuple[int, int]], tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", size, {size - 4: b"LAST"})
    with vmdump.open_source(f"raw:{path}?machine={machine}") as guest:
        assert ranges(guest) == expected
        assert guest.read(expected[-1][1] - 4, 4) == b"LAST"
    with vmdump.open(f"raw:{path}?machine={machine}") as dump:
        assert ranges(dump) == expected


@pytest.mark.parametrize(
    ("machine", "size"), [("q35", 979 * GIB), ("pc", 1010 * GIB), ("pc-q35-7.1", 1 << 40)]
)
def test_vendor_decides_near_1_tib(machine: str, size: int, tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", size)
    low = (3 if machine == "pc" else 2) * GIB
    with pytest.raises(LayoutError, match=re.escape(machine)) as caught:
        vmdump.open_source(f"raw:{path}?machine={machine}")
    found = []
    for layout in caught.value.layouts:
        with vmdump.open_source(f"raw:{path}?{layout}") as guest:
            found.append(ranges(guest))
    assert found == [[(0, low), (above, above + size - low)] for above in (4 * GIB, 1 << 40)]


def test_blocks_take_consecutive_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"".join(bytes([number]) * PAGE for number in range(6)))
    with vmdump.open_source(f"raw:{path}?blocks=0x1000-0x3000,16M-0x1001000,0-4K,1G-0x40002000") as guest:
        assert ranges(guest) == [
            (0, PAGE),
            (PAGE, 3 * PAGE),
            (16 * MIB, 16 * MIB + PAGE),
            (GIB, GIB + 2 * PAGE),
        ]
        firsts = [guest.read(block.start, 1)[0] for block in guest.blocks]
        assert (firsts, guest.read(GIB + PAGE, 1)) == ([3, 0, 2, 4], b"\5")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ("blocks=0-4K,8K-16K", LayoutError, "ram: .*0x3000.*0x4000"),
        ("blocks=0-8K,4K-12K", LayoutError, "overlaps"),
        ("blocks=0-100,4K-20380", LayoutError, "pages"),
        ("blocks=0-4K,8K-8K", RequestError, "8K-8K"),
        ("blocks=0-4K,12K-8K", RequestError, "12K-8K"),
        ("blocks=0-4K,8K", RequestError, "8K"),
        ("blocks=", RequestError, "blocks"),
        ("blocks=0-16K&base=0", RequestError, "blocks"),
        ("machine=q35&blocks=0-16K", RequestError, "machine"),
        ("machine=q36", RequestError, "q35"),
        ("machine=virt", RequestError, "q35"),
        ("machine=q35&max_ram_below_4g=5G", RequestError, "4 GiB"),
        ("machine=microvm&max_ram_below_4g=1G", RequestError, "max_ram_below_4g"),
        ("max_ram_below_4g=1G", RequestError, "machine"),
        ("machine=q35&max_ram_below_4g=8193", LayoutError, "pages"),
        ("blocks=0xfffffffffffff000-0x10000000000003000", RequestError, "64 bits"),
    ],
)
def test_wrong_layouts(options: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", 4 * PAGE)
    with pytest.raises(error, match=words):
        vmdump.open_source(f"raw:{path}?{options}")


@given(st.data())
def test_each_byte_is_where_the_list_says(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6), "pages of each range")
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)), "pages in front")
    order = data.draw(st.permutations(range(len(sizes))), "in the file")
    cuts = data.draw(st.sets(st.integers(1, sum(sizes)), max_size=3), "ends of files")
    starts, at = [], 0
    for size, gap in zip(sizes, gaps, strict=True):
        starts.append((at + gap) * PAGE)
        at += gap + size
    blocks = [(starts[index], starts[index] + sizes[index] * PAGE) for index in order]
    pages = [struct.pack("<Q", 1000 + number) * (PAGE // 8) for number in range(sum(sizes))]
    with tempfile.TemporaryDirectory() as folder:
        paths: list[Path] = []
        for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(pages)], strict=True):
            if begin < end:
                paths.append(Path(folder) / str(begin))
                paths[-1].write_bytes(b"".join(pages[begin:end]))
        with RawSource(paths, blocks=blocks) as guest:
            number = 0
            for begin, end in blocks:
                assert guest.read(begin, end - begin) == b"".join(
                    pages[number : number + (end - begin) // PAGE]
                )
                number += (end - begin) // PAGE
            assert guest.size == len(pages) * PAGE


def test_several_files(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    sizes = {"node0": 3, "node1": 2, "dimm": 1}
    for name, count in sizes.items():
        (tmp_path / name).write_bytes(name.encode().ljust(8) * (PAGE // 8) * count)
    node0, node1, dimm = (f"raw:{tmp_path / name}" for name in sizes)
    sources = [f"{node0}?blocks=0-16K,4G-0x100001000&arch=i386", node1, f"{dimm}?base=8G"]
    expected = [(0, 3, b"node0"), (3, 4, b"node1"), (1 << 20, (1 << 20) + 1, b"node1")]
    expected.append((2 << 20, (2 << 20) + 1, b"dimm"))
    for opened in (vmdump.open_source(sources), vmdump.open(sources)):
        with opened as guest:
            assert guest.arch.name == "i386"
            found = [(block.start // PAGE, block.end // PAGE) for block in guest.blocks]
            assert found == [(begin, end) for begin, end, _ in expected]
            for begin, end, name in expected:
                assert guest.read(begin * PAGE, (end - begin) * PAGE) == name.ljust(8) * (512 * (end - begin))
            assert len(guest.files) == 3
    output = tmp_path / "dump"
    assert run_vmdump("dump", *sources, output).returncode == 0
    assert vmdump.verify(output, against=sources).comparison.different_pages == 0
    parts = [
        RawPart([tmp_path / "node0", tmp_path / "node1"], base=0),
        RawPart([tmp_path / "dimm"], base=8 * GIB),
    ]
    with RawSource(parts) as guest:
        assert (guest.read(4 * PAGE, 5), guest.read(8 * GIB, 5)) == (b"node1", b"dimm ")


@pytest.mark.parametrize(
    "options",
    [
        ("base=0", "base=4K"),  # overlap
        ("base=0&arch=i386", "base=1G&arch=x86_64"),
        ("machine=q35", "base=0"),
    ],
)
def test_files_that_contradict_each_other(options: Sequence[str], tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", 4 * PAGE)
    with pytest.raises((LayoutError, RequestError)):
        vmdump.open_source([f"raw:{path}?{text}" for text in options])


def test_raw_and_other_files_do_not_mix(tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", 4 * PAGE)
    for sources in ([str(path), f"raw:{path}"], [f"raw:{path}", str(path)]):
        for opening in (vmdump.open_source, vmdump.open):
            with pytest.raises(RequestError, match="raw:PATH"):
                opening(sources)
