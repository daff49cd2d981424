"""Hostile files of nearly 64 MiB: one line and an exit code, within 512 MiB of memory and half a minute."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command import run_measured
from oracles.elf_builder import Load, build_elf, note
from oracles.small_dumps import PAGE, kdump

SIZE = (64 << 20) - 1
MEMORY = 512 << 20


def alternating_bitmap(path: Path) -> None:
    """Every second page is there: as many blocks as a file of this size can have."""
    count = SIZE // (2 * PAGE + 8 * 24 * PAGE // 2) * PAGE * 4
    small = kdump()
    bitmap = count // 4
    blocks = 2 * bitmap // PAGE
    fields = {field.name: field for field in small.fields}
    data = small.data
    for name, value in (("bitmap_blocks", blocks), ("max_mapnr", 8 * bitmap), ("max_mapnr_64", 8 * bitmap)):
        width = {4: "<I", 8: "<Q"}[fields[name].width]
        struct.pack_into(width, data, fields[name].offset, value)
    with path.open("wb") as file:
        file.write(data[: 2 * PAGE])
        file.write(b"\x55" * 2 * bitmap)
        place = file.tell() + 24 * count
        file.write(struct.pack("<QIIQ", place, PAGE, 0, 0) * count)
        file.write(b"x" * PAGE)


def one_byte_records(path: Path) -> None:
    """A flattened file whose records hold one byte each, the last byte first."""
    count = (SIZE - 4096 - 16) // 17
    numbers = b"".join(struct.pack(">qqB", count - i, 1, 0) for i in range(1, count + 1))
    path.write_bytes(
        b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1) + bytes(4064) + numbers + b"\xff" * 16
    )


def tiny_notes(path: Path) -> None:
    """Notes without name and content."""
    path.write_bytes(build_elf([Load(0, bytes(PAGE))], notes=bytes(12) * ((SIZE - 8192) // 12)))


def tiny_cpus(path: Path) -> None:
    """NT_PRSTATUS notes without registers, a vCPU each."""
    one = note(b"CORE", 1, b"")
    path.write_bytes(build_elf([Load(0, bytes(PAGE))], notes=one * ((SIZE - 8192) // len(one))))


def one_note(path: Path) -> None:
    """One note as large as the file."""
    path.write_bytes(build_elf([Load(0, bytes(PAGE))], notes=note(b"CORE", 7, bytes(SIZE - 8192))))


def long_vmcoreinfo(path: Path) -> None:
    """VMCOREINFO of millions of lines."""
    text = b"".join(b"%x=\n" % line for line in range(8_000_000))[: SIZE - 8192]
    path.write_bytes(build_elf([Load(0, bytes(PAGE))], notes=note(b"VMCOREINFO", 0, text)))


def shared_notes(path: Path) -> None:
    """A million PT_NOTEs, all of them the same megabyte."""
    loads = (SIZE - (2 << 20)) // 56
    header = bytearray(build_elf([Load(0, bytes(PAGE))], phnum=loads, xnum=True))
    count = loads - 2
    table = struct.pack("<IIQQQQQQ", 4, 0, 64 + 56 * (count + 2), 0, 0, 1 << 20, 1 << 20, 0) * count
    path.write_bytes(_with_table(header, table, count) + note(b"CORE", 7, bytes((1 << 20) - 20)))


def _with_table(header: bytearray, table: bytes, count: int) -> bytes:
    """An ELF header with this table of program headers behind it, counted by a section header at the end."""
    head = header[:64]
    struct.pack_into("<Q", head, 40, 64 + len(table))
    section = bytearray(64)
    struct.pack_into("<I", section, 44, count)
    return bytes(head) + table + bytes(section)


def many_loads(path: Path) -> None:
    """A million PT_LOADs of a page each, in descending order, and all of them the same page of the file."""
    count = (SIZE - 8192) // 56
    end = 64 + 56 * count + 64
    header = bytearray(build_elf([Load(0, bytes(PAGE))], xnum=True))
    table = b"".join(
        struct.pack("<IIQQQQQQ", 1, 0, end, 0, (count - i) * 2 * PAGE, PAGE, PAGE, 0) for i in range(count)
    )
    path.write_bytes(_with_table(header, table, count) + bytes(PAGE))


def many_aliases(path: Path) -> None:
    """A million PT_LOADs that all show the same page at the same address."""
    count = (SIZE - 8192) // 56
    end = 64 + 56 * count + 64
    header = bytearray(build_elf([Load(0, bytes(PAGE))], xnum=True))
    table = struct.pack("<IIQQQQQQ", 1, 0, end, 0, 0, PAGE, PAGE, 0) * count
    path.write_bytes(_with_table(header, table, count) + bytes(PAGE))


def huge_sub_header(path: Path) -> None:
    """sub_hdr_size and bitmap_blocks at their largest, notes of nearly all of the file."""
    small = kdump()
    fields = {field.name: field for field in small.fields}
    struct.pack_into("<i", small.data, fields["sub_hdr_size"].offset, 0x7FFFFFFF)
    struct.pack_into("<Q", small.data, fields["size_note"].offset, SIZE - 3 * PAGE)
    path.write_bytes(bytes(small.data).ljust(SIZE, b"\0"))


def full_bitmap_of_bombs(path: Path) -> None:
    """Every page is the same few bytes, a zlib stream that never ends."""
    import zlib

    small = kdump()
    fields = {field.name: field for field in small.fields}
    count = 2_000_000 // (8 * PAGE) * 8 * PAGE
    struct.pack_into("<I", small.data, fields["bitmap_blocks"].offset, 2 * count // 8 // PAGE)
    struct.pack_into("<I", small.data, fields["max_mapnr"].offset, count)
    struct.pack_into("<Q", small.data, fields["max_mapnr_64"].offset, count)
    bomb = zlib.compress(bytes(16 << 20), 9)
    with path.open("wb") as file:
        file.write(small.data[: 2 * PAGE])
        file.write(b"\xff" * (2 * count // 8))
        place = file.tell() + 24 * count
        file.write(struct.pack("<QIIQ", place, PAGE - 1, 1, 0) * count)
        file.write(bomb)


def many_ranges(path: Path) -> None:
    """A LiME file of ranges of one byte."""
    count = SIZE // 33
    path.write_bytes(
        b"".join(struct.pack("<IIQQQB", 0x4C694D45, 1, i * PAGE, i * PAGE, 0, 1) for i in range(count))
    )


def far_bits(path: Path) -> None:
    """Records of one byte each that set a bit far from the others: windows of 2 GiB, in 8 MiB."""
    count = 500_000
    small = kdump()
    fields = {field.name: field for field in small.fields}
    struct.pack_into("<I", small.data, fields["bitmap_blocks"].offset, 2 * count)
    struct.pack_into("<Q", small.data, fields["max_mapnr_64"].offset, 8 * count * PAGE)
    head = bytes(small.data[: 2 * PAGE])
    bits = b"".join(struct.pack(">qqB", (2 + number) * PAGE, 1, 1) for number in range(count))
    end = struct.pack(">qq", (2 + 2 * count) * PAGE, PAGE) + bytes(PAGE) + b"\xff" * 16
    path.write_bytes(
        b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1) + bytes(4064)
        + struct.pack(">qq", 0, len(head)) + head + bits + end
    )  # fmt: skip


HOSTILE: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        alternating_bitmap, one_byte_records, tiny_notes, tiny_cpus, one_note, long_vmcoreinfo, shared_notes,
        many_loads, many_aliases, huge_sub_header, full_bitmap_of_bombs, many_ranges, far_bits,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_bounded(name: str, tmp_path: Path) -> None:
    """Looked at, read, and written again."""
    path, output = tmp_path / "hostile", tmp_path / "output"
    HOSTILE[name](path)
    assert path.stat().st_size <= SIZE
    look, read = ("info", path), ("read", path, "0", "1", "-o", output)
    everything = [("verify", path, "-q"), ("convert", path, output, "-q", "-f", "kdump-lzo", "--force")]
    # Bombs are many pages in few bytes: to unpack all of them takes minutes, and goes on all the time.
    rest = [] if name == "full_bitmap_of_bombs" else everything
    for words in (look, read, *rest):
        code, said, peak = run_measured(*words)
        assert peak < MEMORY, words
        assert 0 <= code < 32, (words, said)
        assert said.count("\n") == (code != 0), said
        assert "Traceback" not in said
