"""--compat qemu: QEMU's ELF dump in, QEMU's own files out, to the last byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.goldens import DATA, MACHINES
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import judges, qemu_kdump
from oracles.elf import ElfCore
from oracles.kdump import Kdump

import vmdump
from vmdump.codecs.registry import Engine
from vmdump.errors import CapabilityError, EngineUnavailable, RequestError
from vmdump.kernels.engines import native_engines
from vmdump.sources.buffers import BlockSource
from vmdump.writers.compat import target as compat

Golden = Callable[[str, str], Path]

pytestmark = pytest.mark.skipif("zlib" not in native_engines(), reason="this build has no zlib")


def written(source: object, output: Path, **options: object) -> vmdump.Report:
    return vmdump.dump(source, output, compat="qemu", **options)  # type: ignore[arg-type]


def same_bytes(one: Path, other: Path) -> None:
    """Assert that two files are equal, naming the first byte that is not."""
    first, second = (np.memmap(path, np.uint8, "r") for path in (one, other))
    assert first.size == second.size
    for begin in range(0, first.size, 1 << 24):
        different = np.flatnonzero(first[begin : begin + (1 << 24)] != second[begin : begin + (1 << 24)])
        assert not different.size, f"byte {begin + different[0]:#x} of {one} and of {other}"


@pytest.mark.parametrize("machine", MACHINES)
def test_elf(machine: str, golden: Golden, tmp_path: Path) -> None:
    report = written(golden(machine, "elf"), tmp_path / "mine", format="elf")
    same_bytes(tmp_path / "mine", golden(machine, "elf"))
    assert report.output_bytes == (tmp_path / "mine").stat().st_size


@pytest.mark.parametrize("machine", MACHINES)
def test_elf_with_paging(machine: str, golden: Golden, tmp_path: Path) -> None:
    """Paging is off in the two of x86, and QEMU does not know the page tables of the others."""
    written(golden(machine, "elf"), tmp_path / "mine", format="elf", paging=True)
    same_bytes(tmp_path / "mine", golden(machine, "elf-paging" if machine == "x86_64-q35" else "elf"))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("machine", MACHINES)
def test_kdump_is_qemus_record_for_record(machine: str, threads: int, golden: Golden, tmp_path: Path) -> None:
    report = written(golden(machine, "elf"), tmp_path / "mine", threads=threads)
    same_bytes(tmp_path / "mine", golden(machine, "kdump-zlib"))
    assert (report.layout, report.engine, report.level) == ("flattened", "zlib", 1)
    assert report.output_bytes == (tmp_path / "mine").stat().st_size


@pytest.mark.parametrize("options", [{"format": "kdump-raw-zlib"}, {"layout": "standard"}])
@pytest.mark.parametrize("machine", MACHINES)
def test_standard_layout_is_qemus_file_rearranged(
    machine: str, options: dict[str, str], golden: Golden, tmp_path: Path
) -> None:
    report = written(golden(machine, "elf"), tmp_path / "mine", **options)
    judges.makedumpfile_rearrange(golden(machine, "kdump-zlib"), tmp_path / "qemus")
    same_bytes(tmp_path / "mine", tmp_path / "qemus")
    assert report.layout == "standard"


@pytest.mark.parametrize(("options", "name"), [((), "kdump-zlib"), (("-f", "elf"), "elf")])
def test_pipe(
    options: tuple[str, ...], name: str, golden: Golden, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    done = run_vmdump("dump", golden("riscv64-virt", "elf"), "-", "--compat", "qemu", *options)
    assert done.returncode == 0, done.stderr
    (tmp_path / "mine").write_bytes(done.stdout)
    same_bytes(tmp_path / "mine", golden("riscv64-virt", name))


def test_a_part_is_what_the_whole_has_there(golden: Golden, tmp_path: Path) -> None:
    """QEMU's headers count what is asked for; --begin and --length may cut a page."""
    whole = ElfCore(golden("riscv64-virt", "elf"))
    written(golden("riscv64-virt", "elf"), tmp_path / "part", format="elf", begin=0x8007, length=0x7FFF_8100)
    part = ElfCore(tmp_path / "part")
    assert [(load.paddr, load.memsz, load.filesz) for load in part.loads] == [
        (0x8007, 0x7FF9, 0x7FF9),
        (0x80000000, 0x107, 0x107),
    ]
    assert part.notes == whole.notes
    assert all(part.read(load.paddr, load.memsz) == whole.read(load.paddr, load.memsz) for load in part.loads)


def test_headers_of_a_linux_guest(tmp_path: Path) -> None:
    """Its phys_base is what Linux tells in decimal, read as hexadecimal, and its VMCOREINFO is found."""
    folder = DATA / "x86_64-linux-128M"
    core = ElfCore(folder / "elf.head64k")
    end = max(load.offset + load.filesz for load in core.loads)
    (tmp_path / "core").write_bytes((folder / "elf.head64k").read_bytes())
    with (tmp_path / "core").open("r+b") as file:
        file.truncate(core.loads[0].offset)
        file.truncate(end)
    written(tmp_path / "core", tmp_path / "elf", format="elf")
    written(tmp_path / "core", tmp_path / "kdump")
    headers = core.loads[0].offset
    assert (tmp_path / "elf").read_bytes()[:headers] == (folder / "elf.head64k").read_bytes()[:headers]
    assert (tmp_path / "elf").stat().st_size == end + len(b"\0.shstrtab\0")
    head = (folder / "kdump-zlib.head64k").read_bytes()
    with (tmp_path / "kdump").open("rb") as file:
        assert file.read(len(head)) == head


PAGE = 4096
KINDS = st.sampled_from(["zero", "text", "noise", "triples", "byte"])
Blocks = list[tuple[int, bytes]]


def content(kind: str, rng: np.random.Generator, size: int) -> bytes:
    if kind == "zero":
        return bytes(size)
    if kind == "text":
        return (b"%d green bottles, " % rng.integers(1000) * size)[:size]
    if kind == "byte":
        return (bytes(size - 1) + b"1")[-size:]
    table = rng.integers(0, 256, (size // 8 + 1, 8), np.uint8)
    if kind == "triples":  # which zlib makes smaller, and which look as if it did not
        table[::2, 4:7] = table[::2, :3]
    return table.tobytes()[:size]


@st.composite
def guests(draw: st.DrawFn) -> Blocks:
    """Blocks that begin and end anywhere, some of them in one page."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    blocks: Blocks = []
    at = 0
    for _ in range(draw(st.integers(1, 4))):
        at += draw(st.sampled_from([0, 0x10, 0x400, PAGE, 0x10000, 0x8000000, 3 << 30]))
        kinds = draw(st.lists(st.tuples(KINDS, st.integers(1, 40)), min_size=1, max_size=5))
        memory = b"".join(content(kind, rng, PAGE) for kind, count in kinds for _ in range(count))
        memory = memory[: len(memory) - draw(st.sampled_from([0, 0, 0x20, 0xC00]))]
        blocks.append((at, memory))
        at += len(memory) + 0x100
    return blocks


same_zlib = pytest.mark.skipif(
    native_engines().get("zlib", {}).get("version") != zlib.ZLIB_RUNTIME_VERSION,
    reason="Python has another zlib",
)


def check_records(blocks: Blocks, arch: str, threads: int, folder: Path) -> None:
    """Assert that a dump of these blocks has the records of the oracle, in either layout."""
    page_size = 65536 if arch == "aarch64" else PAGE
    written(BlockSource(blocks, arch=arch), folder / "mine", threads=threads)
    found = qemu_kdump.records_of((folder / "mine").read_bytes())
    max_mapnr = (blocks[-1][0] + len(blocks[-1][1])) // page_size
    bitmap_size = -(-max_mapnr // (8 * page_size)) * page_size
    offset = 2 * page_size
    expected = qemu_kdump.bitmap_records(blocks, page_size, offset, bitmap_size)
    expected += qemu_kdump.page_records(blocks, page_size, offset + 2 * bitmap_size)
    assert [place for place, _ in found[:2]] == [0, page_size]
    assert [(place, len(data)) for place, data in found[2:]] == [
        (place, len(data)) for place, data in expected
    ]
    assert found[2:] == expected

    # What the records make, written in their order, is the standard layout.
    standard = bytearray()
    for place, data in found:
        standard.extend(bytes(max(place - len(standard), 0)))
        standard[place : place + len(data)] = data
    written(BlockSource(blocks, arch=arch), folder / "standard", layout="standard")
    assert (folder / "standard").read_bytes() == standard


@same_zlib
@given(blocks=guests(), arch=st.sampled_from(["x86_64", "aarch64", "riscv64"]), threads=st.integers(1, 2))
@settings(max_examples=25)
def test_records_are_qemus(
    blocks: Blocks, arch: str, threads: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_records(blocks, arch, threads, tmp_path_factory.mktemp("records"))


@same_zlib
def test_data_goes_before_descriptors(tmp_path: Path) -> None:
    """Descriptor 1364 finds 16 KiB of descriptors full, and its page, plain, 16 KiB of data."""
    memory = bytes(PAGE) + np.random.default_rng(7).bytes(1400 * PAGE)
    check_records([(0, memory)], "x86_64", 1, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "kdump-lzo"},
        {"format": "kdump-snappy"},
        {"format": "kdump-zstd"},
        {"engine": "isal"},
        {"level": 6},
        {"pause": False},
        {"vmcoreinfo": b"OSRELEASE=6.1.0\n"},
        {"compat": "crash"},
        {"begin": 0, "length": PAGE},
    ],
    ids=str,
)
def test_what_qemu_does_not_do_is_refused(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        vmdump.dump(bytes(PAGE), tmp_path / "out", **{"compat": "qemu", **options})  # type: ignore[arg-type]
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_engine_and_level_may_be_said(tmp_path: Path) -> None:
    written(bytes(PAGE), tmp_path / "said", engine="zlib", level=1)
    written(bytes(PAGE), tmp_path / "mine")
    same_bytes(tmp_path / "said", tmp_path / "mine")


def test_machines_that_qemu_does_not_dump(tmp_path: Path) -> None:
    for name in ("elf", "kdump-zlib"):
        with pytest.raises(CapabilityError, match="mips"):
            written(BlockSource(bytes(PAGE), arch="mips"), tmp_path / "out", format=name)


def smbios(*, family: int, model: int) -> bytes:
    """1 MiB of memory with an SMBIOS table that describes one processor."""
    signature = family << 8 | (model & 0xF) << 4 | (model >> 4) << 16
    table = struct.pack("<BBH", 0, 24, 0) + bytes(20) + b"vendor\0\0"
    table += struct.pack("<BBH4xI", 4, 42, 0x400, signature) + bytes(30) + b"CPU 0\0\0"
    memory = bytearray(1 << 20)
    memory[0xF5A00:0xF5A20] = struct.pack("<4s18xHII", b"_SM_", len(table), 0x98000, 2)
    memory[0x98000 : 0x98000 + len(table)] = table
    return bytes(memory)


@pytest.mark.parametrize(
    ("memory", "machine"),
    [
        (bytes(1 << 20), b"x86_64"),
        (bytes(PAGE), b"x86_64"),
        (smbios(family=5, model=4), b"i686"),
        (smbios(family=6, model=14), b"i686"),
        (smbios(family=6, model=15), b"x86_64"),
        (smbios(family=6, model=0x3A), b"x86_64"),
        (smbios(family=15, model=107), b"x86_64"),
    ],
)
def test_which_qemu_a_32_bit_guest_is_of(memory: bytes, machine: bytes, tmp_path: Path) -> None:
    written(BlockSource(memory, arch="i386"), tmp_path / "out", layout="standard")
    with vmdump.open(tmp_path / "out") as dump:
        assert dump.utsname.machine == machine


@given(table=st.binary(max_size=200), length=st.integers(0, 0xFFFF), place=st.integers(0, 0xFFFFFFFF))
def test_smbios_may_be_anything(table: bytes, length: int, place: int) -> None:
    memory = bytearray(1 << 20)
    memory[0xF0010:0xF0030] = struct.pack("<4s18xHII", b"_SM_", length, place, 0)
    memory[0xF1000 : 0xF1000 + len(table)] = table
    assert compat.qemu_target(BlockSource(memory, arch="i386")).uts_machine in (b"x86_64", b"i686")


@pytest.mark.parametrize(
    ("told", "number"),
    [
        ("4806672384", 0x4806672384),
        ("-490733568", -0x490733568),
        ("0x1000000", 0x1000000),
        ("12k", 0),
        ("1" * 17, 0),
        ("", 0),
    ],
)
def test_phys_base_is_read_as_hexadecimal(told: str, number: int, tmp_path: Path) -> None:
    text = f"OSRELEASE=6.1.0\nNUMBER(phys_base)={told}\n".encode()
    for arch in ("x86_64", "riscv64"):
        source = BlockSource(bytes(PAGE), arch=arch, vmcoreinfo=text)
        written(source, tmp_path / arch, layout="standard")
        assert Kdump(tmp_path / arch).sub_header["phys_base"] == (number if arch == "x86_64" else 0)


def test_without_zlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, missing in (("1.3.1.zlib-ng", ""), ("", "not built")):
        other = Engine("zlib", "zlib", "native", version, 1, 9, 1, None, missing)
        monkeypatch.setattr("vmdump.codecs.registry._engine", lambda name, codec, other=other: other)
        with pytest.raises(EngineUnavailable):
            written(bytes(PAGE), tmp_path / "out")
        written(bytes(PAGE), tmp_path / f"{version}.elf", format="elf")
