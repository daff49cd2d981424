"""The rules of the ELF writer: class, byte order, what begin and length keep, and very many segments."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.command import RunVmdump
from hypothesis import given
from hypothesis import strategies as st
from oracles import judges
from oracles.elf import PN_XNUM, ElfCore
from oracles.elf_builder import note

import vmdump
from vmdump.errors import RequestError

PAGE = 4096


class Expected(NamedTuple):
    """A PT_LOAD: guest-physical address, bytes in memory, and where its bytes come from."""

    paddr: int
    memsz: int
    content: bytes


def filtered(blocks: Sequence[tuple[int, bytes]], begin: int, length: int) -> list[Expected]:
    """Model the seed's filter, one block and one address at a time.

    A block counts if it ends behind `begin` and starts before `begin + length`; what remains of it is cut
    at both ends. Without a filter QEMU's begin and length are not looked at.
    """
    end = begin + length
    kept = []
    for start, data in blocks:
        if start >= end or start + len(data) <= begin:
            continue
        first = begin if begin > start else start
        last = end if end < start + len(data) else start + len(data)
        kept.append(Expected(first, last - first, data[first - start : last - start]))
    return kept


def check_core(path: Path, expected: Sequence[Expected]) -> ElfCore:
    core = ElfCore(path).check_vmdump_layout()
    assert [(load.paddr, load.memsz) for load in core.loads] == [(e.paddr, e.memsz) for e in expected]
    for load, wanted in zip(core.loads, expected, strict=True):
        assert core.load_bytes(load) == wanted.content
    return core


def dump_elf(blocks: Sequence[tuple[int, bytes]], path: Path, **options: object) -> Path:
    source = vmdump.BlockSource(list(blocks), arch="x86_64")
    vmdump.dump(source, path, format="elf", **options)  # type: ignore[arg-type]
    return path


@st.composite
def block_lists(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Sorted blocks with gaps and neighbours, each page filled with its own number."""
    position, blocks, page = draw(st.integers(0, 3)), [], 0
    for gap, count in draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=6)):
        position += gap
        data = b"".join((page + i + 1).to_bytes(2, "little") * (PAGE // 2) for i in range(count))
        blocks.append((position * PAGE, data))
        position, page = position + count, page + count
    return blocks


@given(blocks=block_lists(), begin=st.integers(0, 40 * PAGE), length=st.integers(1, 40 * PAGE))
def test_begin_and_length_keep_what_the_model_keeps(
    blocks: list[tuple[int, bytes]], begin: int, length: int
) -> None:
    expected = filtered(blocks, begin, length)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core"
        if not expected:
            with pytest.raises(RequestError) as caught:
                dump_elf(blocks, path, begin=begin, length=length)
            assert caught.value.parameter == "begin"
            assert not path.exists()
        else:
            check_core(dump_elf(blocks, path, begin=begin, length=length), expected)


@given(blocks=block_lists())
def test_without_a_filter_every_block_is_a_segment(blocks: list[tuple[int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = dump_elf(blocks, Path(folder) / "core")
        check_core(path, [Expected(start, len(data), data) for start, data in blocks])


BLOCKS = [(0x1000, b"a" * PAGE), (0x2000, b"b" * PAGE), (0x8000, b"c" * 2 * PAGE)]


@pytest.mark.parametrize(
    ("begin", "length", "kept"),
    [
        (0, 0x1001, [(0x1000, 1)]),
        (0x1FFF, 2, [(0x1FFF, 1), (0x2000, 1)]),
        (0x2000, 0x6000, [(0x2000, 0x1000)]),
        (0x2FFF, 0x5002, [(0x2FFF, 1), (0x8000, 1)]),
        (0x9000, 1 << 40, [(0x9000, 0x1000)]),
        (0x8800, 0x100, [(0x8800, 0x100)]),
        (0, 1 << 63, [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x2000)]),
    ],
)
def test_begin_and_length_by_hand(
    begin: int, length: int, kept: list[tuple[int, int]], tmp_path: Path
) -> None:
    core = check_core(
        dump_elf(BLOCKS, tmp_path / "core", begin=begin, length=length), filtered(BLOCKS, begin, length)
    )
    assert [(load.paddr, load.memsz) for load in core.loads] == kept
    assert core.size == core.loads[0].offset + sum(size for _, size in kept)


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"begin": 0x1000}, "length"),
        ({"length": 0x1000}, "begin"),
        ({"begin": 0x4000, "length": 0x1000}, "begin"),
        ({"begin": 0xA000, "length": 0x1000}, "begin"),
        ({"begin": 0, "length": 0x1000}, "begin"),
        ({"format": "kdump-zlib", "begin": 0x1000, "length": 0x1000}, "format|begin"),
        ({"format": "kdump-zlib", "begin": 0x1000}, "format|begin"),
        ({"format": "kdump-lzo", "length": 0x1000}, "format|length|begin"),
        ({"format": "kdump-raw-snappy", "paging": True}, "format|paging"),
        ({"format": "kdump-xz"}, "format"),
        ({"format": "elf", "layout": "flattened"}, "layout"),
        ({"format": "kdump-raw-zlib", "layout": "flattened"}, "layout"),
        ({"layout": "sideways"}, "layout"),
        ({"threads": 0}, "threads"),
        ({"level": 99}, "level"),
    ],
)
def test_refused_requests(options: dict[str, object], parameter: str, tmp_path: Path) -> None:
    """The seed's refusals, and those of the options that it did not have."""
    defaults: dict[str, object] = {"format": "elf"} if set(options) & {"begin", "length"} else {}
    with pytest.raises(RequestError) as caught:
        vmdump.dump(BLOCKS, tmp_path / "core", **{**defaults, **options})  # type: ignore[arg-type]
    assert caught.value.parameter in parameter.split("|")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("-f", "elf", "--begin", "0x1000"), "length"),
        (("-f", "elf", "--length", "0x1000"), "begin"),
        (("-f", "elf", "--begin", "4G", "--length", "4K"), "begin"),
        (("-f", "kdump-zlib", "--begin", "0", "--length", "4K"), "kdump"),
        (("-f", "kdump-zlib", "--paging"), "paging"),
    ],
)
def test_refused_on_the_command_line(
    options: tuple[str, ...], word: str, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    done = run_vmdump("dump", "synthetic:2M", tmp_path / "core", *options)
    assert done.returncode == RequestError.exit_code
    assert word in done.stderr.decode()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arch", "start", "bits", "byteorder"),
    [
        ("i386", 0, 32, "little"),
        ("i386", 0xFFFFE000, 32, "little"),
        ("i386", 0xFFFFF000, 64, "little"),
        ("i386", 0x1_0000_0000, 64, "little"),
        ("arm", 0x4000_0000, 32, "little"),
        ("ppc", 0, 32, "big"),
        ("ppc", 0xFFFFF000, 32, "big"),
        ("ppc", 0x1_0000_0000, 64, "big"),
        ("ppc64", 0, 64, "big"),
        ("s390x", 0, 64, "big"),
        ("x86_64", 0, 64, "little"),
        ("aarch64", 0x4000_0000, 64, "little"),
    ],
)
def test_class_and_byte_order(arch: str, start: int, bits: int, byteorder: str, tmp_path: Path) -> None:
    """The class is the architecture's, but 64 where addresses need it, and on x86 from an end of 4 GiB on."""
    source = vmdump.BlockSource([(start, b"m" * PAGE)], arch=arch, page_size=PAGE)
    vmdump.dump(source, tmp_path / "core", format="elf")
    core = check_core(tmp_path / "core", [Expected(start, PAGE, b"m" * PAGE)])
    assert (core.bits, core.byteorder, core.machine) == (bits, byteorder, source.arch.machine)
    assert judges.readelf(tmp_path / "core", "--file-header", "--segments").count(" LOAD ") == 1


def test_a_segment_never_spills_over_its_block(tmp_path: Path) -> None:
    """Neighbouring blocks stay segments of their own, each with the file range of its own bytes."""
    core = check_core(
        dump_elf(BLOCKS, tmp_path / "core"), [Expected(start, len(data), data) for start, data in BLOCKS]
    )
    assert all(load.filesz == load.memsz for load in core.loads)


@pytest.mark.parametrize(
    ("bits", "count"), [(64, PN_XNUM - 3), (64, PN_XNUM - 2), (32, PN_XNUM - 2), (64, 70_000)]
)
def test_very_many_segments(bits: int, count: int, tmp_path: Path) -> None:
    """From 65533 PT_LOADs on the real number stands in a section header, as QEMU does it."""
    # Blocks of 512 bytes, with gaps between them: 70,000 pages would only measure the disk.
    size, stride = 512, 4096
    memory = np.zeros((count, size), np.uint8)
    memory[:, :4] = np.arange(1, count + 1, dtype="<u4").view(np.uint8).reshape(count, 4)
    blocks = [(index * stride, memory[index]) for index in range(count)]
    notes = note(b"CORE", 1, bytes(336))
    source = vmdump.BlockSource(blocks, arch="x86_64" if bits == 64 else "i386", notes=notes)
    path = tmp_path / "core"
    vmdump.dump(source, path, format="elf")

    core = ElfCore(path).check_vmdump_layout()
    assert core.bits == bits
    assert core.notes == notes
    assert core.raw_phnum == (count + 1 if count < PN_XNUM - 2 else PN_XNUM)
    assert core.phnum == count + 1
    assert [load.paddr for load in core.loads] == [start for start, _ in blocks]
    first = core.loads[0].offset
    assert [load.offset for load in core.loads] == list(range(first, first + count * size, size))
    with path.open("rb") as file:
        stored = np.fromfile(file, np.uint8, count * size, offset=first).reshape(count, size)
    assert np.array_equal(stored, memory)
    assert judges.readelf(path, "--segments").count(" LOAD ") == count
    with vmdump.open(path) as dump:
        assert len(dump.blocks) == count
        assert dump.read((count - 1) * stride, 4) == count.to_bytes(4, "little")
