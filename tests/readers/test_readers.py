"""vmdump's own readers: they give what was dumped, and a damaged file is an error, never a wrong page."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.goldens import MACHINES
from oracles import elf_builder

import vmdump
from vmdump.errors import CodecError, FormatError, ReadError, SourceError, VmdumpError
from vmdump.operations.verify import compare

PAGE = 4096
FORMATS = [("elf", "auto")] + [
    (f"kdump-{codec}", layout)
    for codec in ("zlib", "lzo", "snappy", "zstd")
    for layout in ("standard", "flattened")
]


@pytest.fixture(scope="module")
def memory() -> list[tuple[int, np.ndarray]]:
    """Two blocks with a gap: zero pages, pages that shrink, pages that do not."""
    random = np.random.RandomState(11)
    low = random.randint(0, 256, 40 * PAGE).astype(np.uint8)
    low[3 * PAGE : 9 * PAGE] = 0
    low[12 * PAGE : 30 * PAGE] = np.tile(np.arange(32, dtype=np.uint8), 18 * PAGE // 32)
    return [(0x10000, low), (0x100000000, low[::-1].copy())]


@pytest.fixture(scope="module")
def dumps(memory: list[tuple[int, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dumps")
    made = {}
    for name, layout in FORMATS:
        path = folder / f"{name}-{layout}"
        vmdump.dump(vmdump.BlockSource(memory), path, format=name, layout=layout)
        made[path.name] = path
    return made


@pytest.mark.parametrize(("name", "layout"), FORMATS)
def test_reads_of_any_place_and_length(
    name: str, layout: str, dumps: dict[str, Path], memory: list[tuple[int, np.ndarray]]
) -> None:
    with vmdump.open(dumps[f"{name}-{layout}"]) as dump:
        for start, content in memory:
            raw = content.tobytes()
            for offset, length in [
                (0, 1),
                (PAGE - 1, 2),
                (2 * PAGE + 5, 9 * PAGE),
                (0, len(raw)),
                (39 * PAGE, PAGE),
            ]:
                assert dump.read(start + offset, length) == raw[offset : offset + length]
            pages = dump.pages(start // PAGE + 2, 20)
            assert pages.shape == (20, PAGE)
            assert pages.tobytes() == raw[2 * PAGE : 22 * PAGE]
            mine = np.empty((3, PAGE), np.uint8)
            assert dump.pages(start // PAGE, 3, out=mine) is mine
            assert mine.tobytes() == raw[: 3 * PAGE]
        with pytest.raises(ReadError) as caught:
            dump.read(memory[0][0] + memory[0][1].size - 1, 2)
        assert caught.value.address == memory[0][0] + memory[0][1].size
        with pytest.raises(ReadError):
            dump.pages(0, 1)


@pytest.mark.parametrize("machine", MACHINES)
def test_qemus_own_dumps(machine: str, golden: Callable[[str, str], Path]) -> None:
    """QEMU's flattened kdump holds the memory of QEMU's ELF, whatever its header calls the machine."""
    with vmdump.open(golden(machine, "elf")) as elf, vmdump.open(golden(machine, "kdump-zlib")) as kdump:
        found = compare(elf, kdump, threads=2)
        assert found.equal
        assert found.bytes_compared == elf.size
        assert (kdump.byteorder, kdump.elf_class, kdump.notes) == (elf.byteorder, elf.elf_class, elf.notes)


def test_a_dump_is_a_source_again(dumps: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    with vmdump.open(dumps["kdump-zstd-flattened"]) as dump:
        vmdump.dump(dump, again, format="kdump-lzo")
    assert again.read_bytes() == dumps["kdump-lzo-standard"].read_bytes()


@pytest.mark.parametrize("name", ["kdump-zlib-standard", "kdump-zlib-flattened", "elf-auto"])
def test_every_truncation_is_an_error(name: str, dumps: dict[str, Path], tmp_path: Path) -> None:
    whole = dumps[name].read_bytes()
    cut = tmp_path / "cut"
    for length in [0, 1, 8, 100, 463, 5000, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises((FormatError, SourceError)), vmdump.open(cut) as dump:
            for block in dump.blocks:
                dump.read(block.start, block.size)


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_damaged_page_data_is_never_a_wrong_size(codec: str, dumps: dict[str, Path], tmp_path: Path) -> None:
    whole = bytearray(dumps[f"kdump-{codec}-standard"].read_bytes())
    begin = len(whole) - 30 * PAGE
    whole[begin:] = bytes(byte ^ 0x5A for byte in whole[begin:])
    damaged = tmp_path / "damaged"
    damaged.write_bytes(whole)
    with vmdump.open(damaged) as dump:
        try:
            data = dump.read(dump.blocks[1].start, dump.blocks[1].size)
        except CodecError as error:
            assert "page 0x100" in str(error)
        else:
            assert len(data) == dump.blocks[1].size


@pytest.mark.parametrize(
    ("offset", "size"), [(1 << 63, PAGE), ((1 << 64) - 1, PAGE), (0, 0), (0, PAGE + 1), (0, 0xFFFFFFFF)]
)
def test_descriptor_that_points_anywhere(
    offset: int, size: int, dumps: dict[str, Path], tmp_path: Path
) -> None:
    whole = bytearray(dumps["kdump-zlib-standard"].read_bytes())
    sub_hdr_size, bitmap_blocks = struct.unpack_from("<iI", whole, 432)
    table = (1 + sub_hdr_size + bitmap_blocks) * PAGE
    struct.pack_into("<QII", whole, table + 24 * 7, offset, size, 0)
    hostile = tmp_path / "hostile"
    hostile.write_bytes(whole)
    with vmdump.open(hostile) as dump:
        assert dump.read(dump.blocks[0].start, 7 * PAGE)
        with pytest.raises(FormatError, match="page 0x17"):
            dump.read(dump.blocks[0].start, 8 * PAGE)


def test_header_fields_that_lie(dumps: dict[str, Path], tmp_path: Path) -> None:
    """Set each 32-bit word of the headers to extremes: an error or the right memory, never a crash."""
    whole = dumps["kdump-zlib-standard"].read_bytes()
    with vmdump.open(dumps["kdump-zlib-standard"]) as dump:
        truth = [dump.read(block.start, block.size) for block in dump.blocks]
    hostile = tmp_path / "hostile"
    outcomes = set()
    for offset in [8, *range(424, 464, 4), *range(PAGE, PAGE + 104, 4)]:
        for value in (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            data = bytearray(whole)
            struct.pack_into("<I", data, offset, value)
            hostile.write_bytes(data)
            try:
                with vmdump.open(hostile) as dump:
                    assert [dump.read(block.start, block.size) for block in dump.blocks] == truth
                outcomes.add("same")
            except VmdumpError:
                outcomes.add("refused")
    assert outcomes == {"same", "refused"}


def flat(*records: tuple[int, bytes], end: bool = True) -> bytes:
    body = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    body = body.ljust(4096, b"\0")
    for offset, data in records:
        body += struct.pack(">qq", offset, len(data)) + data
    return body + (struct.pack(">qq", -1, -1) if end else b"")


def test_flattened_records_in_any_order(dumps: dict[str, Path], tmp_path: Path) -> None:
    whole = dumps["kdump-lzo-standard"].read_bytes()
    pieces = [(begin, whole[begin : begin + 5000]) for begin in range(0, len(whole), 5000)]
    shuffled = tmp_path / "shuffled"
    shuffled.write_bytes(flat(*pieces[::-1]))
    with vmdump.open(shuffled) as dump, vmdump.open(dumps["kdump-lzo-standard"]) as standard:
        for block in standard.blocks:
            assert dump.read(block.start, block.size) == standard.read(block.start, block.size)


@pytest.mark.parametrize(
    "content",
    [
        flat((0, b"KDUMP   " + bytes(5000)), end=False),
        flat((-5, b"KDUMP   ")),
        flat((0, b"KDUMP   "), (4, b"overlap")),
        flat((0, b"nothing known")),
        flat(),
        flat((0, b"x"))[:-8],
        flat((0, b"KDUMP   ")).replace(struct.pack(">q", 8), struct.pack(">q", 1 << 62)),
    ],
)
def test_hostile_flattened_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        vmdump.open(path)


def test_elf_whose_notes_lie(tmp_path: Path) -> None:
    path = tmp_path / "core"
    note = struct.pack("<III", 5, 0xFFFFFFF0, 1) + b"CORE\0\0\0\0"
    path.write_bytes(elf_builder.build_elf([elf_builder.Load(0x1000, bytes(PAGE))], notes=note))
    with pytest.raises(FormatError, match="note"):
        vmdump.open(path)
