"""Headers and notes of ELF cores as the field has them: no physical address, no size, far more than usual."""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf import ElfCore, split_notes
from oracles.elf_builder import Load, build_elf, note
from oracles.flattened import flatten
from oracles.kdump import Kdump
from oracles.lime_builder import build_lime

import vmdump
from vmdump.errors import FormatError, LayoutError

PAGE = 4096
MIB = 1 << 20
VMCOREINFO = note(
    b"VMCOREINFO",
    0,
    b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82010000\nNUMBER(phys_base)=0\n"
    b"SYMBOL(init_uts_ns)=ffffffff82000000\nOFFSET(uts_namespace.name)=0\nNUMBER(pgtable_l5_enabled)=0\n",
)


NOWHERE = {64: (1 << 64) - 1, 32: (1 << 32) - 1}
LOW, HIGH = b"low memory......" * (0x9E000 // 16), b"high memory....." * (MIB // 16)


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("bits", [64, 32])
def test_segments_without_a_physical_address(bits: int, byteorder: str) -> None:
    """/proc/kcore has p_paddr -1 for what is no RAM; offset and size may be far beyond the file."""
    machine = {64: {"little": 62, "big": 22}, 32: {"little": 3, "big": 20}}[bits][byteorder]
    beyond = (1 << (bits - 1)) - 1
    none = NOWHERE[bits]
    loads = [
        Load(none, b"v" * 8192, vaddr=0xC8000000),
        Load(none, filesz=beyond, memsz=beyond, offset=beyond, vaddr=0xC0000000),
        Load(0x1000, LOW, vaddr=0),
        Load(none, b"", filesz=0, memsz=0),
        Load(0x100000, HIGH, vaddr=0xC0100000),
    ]
    core = build_elf(loads, bits=bits, byteorder=byteorder, machine=machine)
    with vmdump.open(core) as dump:
        assert dump.elf_class == bits
        assert [(block.start, block.size) for block in dump.blocks] == [(0x1000, 0x9E000), (0x100000, MIB)]
        assert dump.read(0x9EFF0, 16) == LOW[-16:]
    with pytest.raises(FormatError, match="none of its 2 PT_LOADs has a physical address"):
        vmdump.open(build_elf(loads[:2], bits=bits, byteorder=byteorder, machine=machine))


def test_a_32_bit_sentinel_in_a_64_bit_core() -> None:
    """A tool that is 32 bits wide says -1 in as many; the virtual address is of a whole page."""
    loads = [
        Load(NOWHERE[32], b"v" * 8192, vaddr=0xFFFFC90000000000),
        Load(0x1000, LOW),
        Load(NOWHERE[32] - PAGE + 1, bytes(PAGE)),
    ]
    with vmdump.open(build_elf(loads)) as dump:
        assert [block.start for block in dump.blocks] == [0x1000, NOWHERE[32] - PAGE + 1]


def test_memory_that_begins_at_the_last_byte_of_4_gib(tmp_path: Path) -> None:
    """A range that was cut there is no sentinel, in vmdump's own cores above all."""
    ranges = [(NOWHERE[32] - PAGE + 1, HIGH[: PAGE - 1]), (NOWHERE[32], HIGH[:8])]
    (tmp_path / "lime").write_bytes(build_lime(ranges))
    vmdump.convert(tmp_path / "lime", tmp_path / "elf", format="elf")
    with vmdump.open(tmp_path / "elf") as dump:
        assert dump.size == PAGE + 7
        for start, data in ranges:
            assert dump.read(start, len(data)) == data


def test_more_memory_than_any_file_holds(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    (tmp_path / "core").write_bytes(build_elf([Load(0, b"data" * 1024, memsz=1 << 63)]))
    for command in (["convert", "-f", "elf"], ["repair"]):
        done = run_vmdump(*command, tmp_path / "core", tmp_path / "out")
        assert done.returncode == LayoutError.exit_code
        assert done.stderr.count(b"\n") == 1
        assert b"larger than any file" in done.stderr
        assert not (tmp_path / "out").exists()


def test_vmdumps_own_last_page(tmp_path: Path) -> None:
    """Memory that ends at 2^64 has no such address."""
    start = (1 << 64) - PAGE
    vmdump.dump([(start, bytes(PAGE - 1) + b"e")], tmp_path / "core", format="elf")
    with vmdump.open(tmp_path / "core") as dump:
        assert dump.read((1 << 64) - 1, 1) == b"e"


def test_the_last_byte_alone(tmp_path: Path) -> None:
    vmdump.dump([(0x1000, bytes(PAGE)), ((1 << 64) - 1, b"e")], tmp_path / "core", format="elf")
    with vmdump.open(tmp_path / "core") as dump:
        assert dump.read((1 << 64) - 1, 1) == b"e"


@pytest.mark.parametrize(("start", "size"), [(0, (1 << 64) - 1), (0x800, (1 << 64) - PAGE)])
def test_memory_that_fills_all_addresses(
    start: int, size: int, tmp_path: Path, run_vmdump: RunVmdump
) -> None:
    (tmp_path / "core").write_bytes(build_elf([Load(start, b"data" * 1024, memsz=size)]))
    for command in (["info"], ["info", "--page", "0"], ["verify"]):
        done = run_vmdump(*command, tmp_path / "core")
        assert done.returncode == LayoutError.exit_code
        text = f"{tmp_path / 'core'}: its memory fills all 64 bits of addresses: no guest has that"
        assert done.stderr == f"vmdump: {text}\n".encode()


@pytest.mark.parametrize("count", [1, 3, 70_000])
def test_notes_with_nothing_in_them(count: int, tmp_path: Path) -> None:
    """Room for the notes of CPUs that are off is zeros; it is not counted, and not carried on."""
    status = note(b"CORE", 1, bytes(336))
    off = bytes(356)
    notes = status + off * count + status + VMCOREINFO + off
    (tmp_path / "core").write_bytes(build_elf([Load(0, bytes(PAGE))], notes=notes))
    with vmdump.open(tmp_path / "core") as dump:
        assert dump.nr_cpus == 2
        assert dump.vmcoreinfo.page_size == PAGE
        assert dump.notes == status * 2 + VMCOREINFO
    assert vmdump.info(tmp_path / "core").notes == {"CORE": 2, "VMCOREINFO": 1}


def test_notes_of_unusual_forms() -> None:
    """Names without their NUL, without a name, without a descriptor."""
    bare = struct.pack("<III", 4, 336, 1) + b"CORE" + bytes(336)
    nameless = struct.pack("<III", 0, 4, 9) + b"desc"
    empty = struct.pack("<III", 0, 0, 7)
    notes = bare + nameless + empty + VMCOREINFO
    with vmdump.open(build_elf([Load(0, bytes(PAGE))], notes=notes)) as dump:
        assert dump.nr_cpus == 1
        assert dump.notes == notes
        assert dump.vmcoreinfo.page_size == PAGE


def big_note(size: int) -> bytes:
    """VMCOREDD of a network card: the kernel puts what the driver hands out into a note."""
    return note(b"LINUX", 0x700, b"cxgb4_0000:02:00.4".ljust(44, b"\0") + bytes(range(256)) * (size // 256))


@pytest.mark.parametrize("flat", [False, True])
def test_notes_of_eighty_megabytes(flat: bool, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """They go along into each format, and other readers open it; they are not in memory many times."""
    path = tmp_path / "core"
    notes = note(b"CORE", 1, bytes(336)) + big_note(80 * MIB) + VMCOREINFO
    core = build_elf([Load(0x100000, HIGH)], notes=notes)
    path.write_bytes(flatten(core, MIB) if flat else core)
    # What Python and numpy take without any dump is some 60 MiB of resident and 300 MiB of virtual memory.
    most = 3 * 81 * MIB + 500 * MIB
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, limit[1]))
    try:
        done = run_vmdump("convert", path, tmp_path / "kdump", "-j", "1", "-q")
        assert (done.returncode, done.stderr) == (0, b"")
        done = run_vmdump("convert", tmp_path / "kdump", tmp_path / "elf", "-f", "elf", "-j", "1", "-q")
        assert (done.returncode, done.stderr) == (0, b"")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert Kdump(tmp_path / "kdump").check().notes == notes
    assert ElfCore(tmp_path / "elf").check_vmdump_layout().notes == notes
    assert vmdump.info(tmp_path / "kdump").notes == {"CORE": 1, "LINUX": 1, "VMCOREINFO": 1}
    for name in ("kdump", "elf"):
        assert judges.libkdumpfile_read(tmp_path / name, [(0x100000, PAGE)]) == [HIGH[:PAGE]]
        assert judges.drgn_read(tmp_path / name, [(0x100000, PAGE)]) == [HIGH[:PAGE]]


def test_notes_that_the_file_does_not_hold(tmp_path: Path) -> None:
    """A gigabyte of notes in a hole of the file is not read."""
    path = tmp_path / "core"
    core = bytearray(build_elf([Load(0, bytes(PAGE))], notes=VMCOREINFO))
    struct.pack_into("<QQQQQ", core, 64 + 8, PAGE, 0, 0, 1 << 30, 1 << 30)
    path.write_bytes(core)
    with path.open("r+b") as file:
        file.truncate(2 << 30)
    with pytest.raises(FormatError, match="notes of 1073741824 bytes"):
        vmdump.open(path)


def test_several_note_segments(tmp_path: Path) -> None:
    """One for each CPU, of any size, and some with nothing: each begins anew."""
    cpu = [note(b"CORE", 1, bytes(336)), b"", VMCOREINFO[:-1], note(b"CORE", 1, bytes(336))]
    header, loads = 64, 64 + 56 * 6
    rows, at = b"", loads
    for notes in cpu:
        rows += struct.pack("<IIQQQQQQ", 4, 0, at if notes else 1 << 60, 0, 0, len(notes), 0, 0)
        at += len(notes)
    rows += struct.pack("<IIQQQQQQ", 1, 0, at, 0, 0, PAGE, PAGE, 1)
    core = bytearray(build_elf([Load(0, b"")] * 4)[:header])
    path = tmp_path / "core"
    path.write_bytes(bytes(core) + rows + bytes(loads - header - len(rows)) + b"".join(cpu) + HIGH[:PAGE])
    with vmdump.open(path) as dump:
        assert dump.nr_cpus == 2
        assert dump.vmcoreinfo.page_size == PAGE
        assert [entry.name for entry in split_notes(dump.notes, "<")] == [b"CORE", b"VMCOREINFO", b"CORE"]
        assert dump.read(0, PAGE) == HIGH[:PAGE]
