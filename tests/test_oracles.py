"""The judges judged: they agree with QEMU's own dumps, with each other, and they notice damage."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.goldens import DATA, MACHINES
from oracles import judges
from oracles.elf import ElfCore
from oracles.elf_builder import EM_PPC, EM_X86_64, Load, build_elf, note
from oracles.flattened import Flattened
from oracles.kdump import ZLIB, Kdump

Golden = Callable[[str, str], Path]

FORMS = {
    "x86_64-q35": (64, "little", 4096, "64-bit"),
    "i386-pc": (64, "little", 4096, "64-bit"),
    "aarch64-virt": (64, "little", 65536, "64-bit"),
    "arm-virt": (32, "little", 4096, "packed"),
    "ppc-g3": (32, "big", 4096, "packed"),
    "ppc64-pseries": (64, "big", 65536, "64-bit"),
    "riscv64-virt": (64, "little", 4096, "64-bit"),
}


@pytest.fixture(scope="session")
def standard(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("standard")

    def rearrange(machine: str) -> Path:
        output = folder / machine
        if not output.exists():
            Flattened(golden(machine, "kdump-zlib")).rearrange(output)
        return output

    return rearrange


@pytest.mark.parametrize("machine", MACHINES)
def test_qemus_kdump_holds_the_pages_of_qemus_elf(
    machine: str, golden: Golden, standard: Callable[[str], Path]
) -> None:
    elf, kdump = ElfCore(golden(machine, "elf")), Kdump(standard(machine)).check()
    assert (kdump.form.bits, kdump.form.byteorder, kdump.block_size, kdump.packing) == FORMS[machine]
    assert (elf.bits, elf.byteorder) == FORMS[machine][:2]
    assert kdump.codec_flag == ZLIB
    size = kdump.block_size
    assert kdump.frame_ranges() == [
        (load.paddr // size, (load.paddr + load.memsz) // size) for load in elf.loads
    ]
    assert all(page == elf.read(pfn * size, size) for pfn, page in kdump.pages())
    assert kdump.notes == elf.notes
    assert kdump.header["nr_cpus"] == sum(note.type == 1 for note in elf.note_list())


@pytest.mark.parametrize("machine", MACHINES)
def test_makedumpfile_rearranges_to_the_same_file(
    machine: str, golden: Golden, standard: Callable[[str], Path], tmp_path: Path
) -> None:
    judges.makedumpfile_rearrange(golden(machine, "kdump-zlib"), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == standard(machine).read_bytes()


def test_qemus_small_flattened_records_are_noticed(golden: Golden) -> None:
    with pytest.raises(AssertionError, match=r"record of \d{2,4} bytes"):
        Flattened(golden("x86_64-q35", "kdump-zlib")).check()


def test_header_of_a_linux_guest_with_vmcoreinfo(tmp_path: Path) -> None:
    flattened = (DATA / "x86_64-linux-128M" / "kdump-zlib.head64k").read_bytes()
    image, position = bytearray(), 4096
    while position + 16 <= len(flattened):
        offset, size = struct.unpack_from(">qq", flattened, position)
        data = flattened[position + 16 : position + 16 + size]
        image.extend(bytes(max(0, offset + len(data) - len(image))))
        image[offset : offset + len(data)] = data
        position += 16 + size
    # The descriptors that the head does not reach; no page is looked at.
    image.extend(bytes(2 << 20))
    (tmp_path / "head").write_bytes(image)
    kdump = Kdump(tmp_path / "head")
    elf_head = (DATA / "x86_64-linux-128M" / "elf.head64k").read_bytes()
    assert kdump.notes == elf_head[0x168 : 0x168 + 0x1338]
    assert kdump.vmcoreinfo.startswith(b"OSRELEASE=6.1.0-")
    assert len(kdump.vmcoreinfo) == 0xCBE


def _damage(path: Path, tmp_path: Path, offset: int, data: bytes) -> Path:
    copy = tmp_path / "damaged"
    shutil.copy(path, copy)
    with copy.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return copy


DAMAGE: dict[str, tuple[Callable[[Kdump], int], bytes, str]] = {
    "signature": (lambda k: 0, b"DISKDUMP", "signature"),
    "version": (lambda k: 8, b"\x05", "header version 5"),
    "utsname": (lambda k: 12 + 64, b"x", "utsname.sysname is not NUL-padded"),
    "two codecs": (lambda k: 424, b"\x03", "two codecs"),
    "incomplete": (lambda k: 424, b"\x09", "no codec"),
    "sub_hdr_size": (lambda k: 432, b"\x02", "bitmap of the wrong size|sub_hdr_size 2"),
    "behind the header": (lambda k: 464, b"\x01", "header block"),
    "split": (lambda k: 4096 + 12, b"\x01", "split"),
    "offset_note": (lambda k: 4096 + 48, b"\x00", "notes"),
    "max_mapnr": (lambda k: 4096 + 96, b"\x01", "max_mapnr"),
    "bitmap1": (lambda k: k.bitmap_offset, b"\xfe", "bitmaps differ"),
    "flags gone": (lambda k: k.descriptor_offset + 12, b"\x00", "block_size long"),
    "other codec": (lambda k: k.descriptor_offset + 12, b"\x02", "another codec"),
    "size 0": (lambda k: k.descriptor_offset + 8, b"\0\0", "did not shrink"),
    "size": (lambda k: k.descriptor_offset + 8, b"\x01", "has gaps"),
    "offset behind": (lambda k: k.descriptor_offset + 3, b"\x7f", "behind the file's end"),
    "offset before": (lambda k: k.descriptor_offset, b"\0\0\0\0", "before the end of the descriptors"),
    "page_flags": (lambda k: k.descriptor_offset + 23, b"\x01", "page_flags"),
    "zero page": (lambda k: k.data_offset, b"\x01", "shared zero page"),
    "tail": (lambda k: k.size, b"\x01", "has gaps"),
}


@pytest.mark.parametrize(("where", "data", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_kdump_oracle_notices_damage(
    where: Callable[[Kdump], int],
    data: bytes,
    complaint: str,
    standard: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    whole = Kdump(standard("x86_64-q35"))
    damaged = _damage(standard("x86_64-q35"), tmp_path, where(whole), data)
    with pytest.raises(AssertionError, match=complaint):
        Kdump(damaged).check()


def test_kdump_oracle_notices_a_damaged_page(standard: Callable[[str], Path], tmp_path: Path) -> None:
    whole = Kdump(standard("x86_64-q35"))
    index = int(np.flatnonzero(whole.descriptors["flags"] == ZLIB)[0])
    offset = int(whole.descriptors["offset"][index])
    damaged = Kdump(_damage(standard("x86_64-q35"), tmp_path, offset + 2, b"\xff\xff\xff"))
    with pytest.raises(Exception, match=r"Error -3|page of|zlib stream"):
        damaged.page(int(whole.pfns[index]))


@pytest.mark.parametrize(
    ("mutate", "complaint"),
    [
        (lambda raw: raw[:-1], "no end marker"),
        (lambda raw: raw + b"\0", "behind the end marker"),
        (lambda raw: raw[:-16] + struct.pack(">qq", 0, 1 << 40), "cut off"),
        (lambda raw: raw[:24] + struct.pack(">q", 2) + raw[32:], "type and version"),
        (lambda raw: b"M" + raw[1:], "signature"),
    ],
)
def test_flattened_oracle_notices_damage(
    mutate: Callable[[bytes], bytes], complaint: str, golden: Golden, tmp_path: Path
) -> None:
    path = tmp_path / "flattened"
    path.write_bytes(mutate(golden("aarch64-virt", "kdump-zlib").read_bytes()))
    with pytest.raises(AssertionError, match=complaint):
        Flattened(path)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("xnum", [False, True])
@pytest.mark.parametrize("sections_first", [False, True])
def test_builder_and_reader_agree(
    bits: int, byteorder: str, xnum: bool, sections_first: bool, tmp_path: Path
) -> None:
    notes = note(b"CORE", 1, b"registers", byteorder) + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n", byteorder)
    loads = [
        Load(0x8000_0000, b"high" * 1024),
        Load(0x1000, b"half" * 512, memsz=4096),
        Load(0x2000, alias=0, vaddr=0xC000_0000),
    ]
    path = tmp_path / "core"
    machine = EM_X86_64 if byteorder == "little" else EM_PPC
    path.write_bytes(
        build_elf(loads, notes=notes, bits=bits, byteorder=byteorder, machine=machine, xnum=xnum,
                  sections_first=sections_first, align=512)
    )  # fmt: skip
    core = ElfCore(path)
    assert (core.bits, core.byteorder, core.machine) == (bits, byteorder, machine)
    assert core.note_list() == [(b"CORE", 1, b"registers"), (b"VMCOREINFO", 0, b"OSRELEASE=6.1\n")]
    assert [(load.paddr, load.memsz) for load in core.loads] == [
        (0x8000_0000, 4096),
        (0x1000, 4096),
        (0x2000, 4096),
    ]
    assert core.read(0x8000_0000, 4096) == core.read(0x2000, 4096) == b"high" * 1024
    assert core.read(0x1000, 4096) == b"half" * 512 + bytes(2048)
    with pytest.raises(KeyError):
        core.read(0x3000, 1)
    text = judges.readelf(path, "--segments", "--notes")
    assert text.count(" LOAD ") == 3
    assert "VMCOREINFO" in text


def test_builder_can_lie(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(build_elf([Load(0, b"x" * 16, filesz=1 << 40, offset=1 << 41)]))
    core = ElfCore(path)
    assert (core.loads[0].offset, core.loads[0].filesz, core.loads[0].memsz) == (1 << 41, 1 << 40, 1 << 40)
    with pytest.raises(AssertionError, match="behind the file's end"):
        core.load_bytes(core.loads[0])


def test_drgn_and_libkdumpfile_read_what_the_elf_oracle_reads(tmp_path: Path) -> None:
    """On an ELF core, the one file that these two and our oracle all open without a kernel in it."""
    rng = np.random.default_rng(1)
    memory = rng.integers(0, 256, 64 << 12, np.uint8).tobytes()
    path = tmp_path / "core"
    path.write_bytes(build_elf([Load(0x10_0000, memory)], notes=note(b"CORE", 1, bytes(336)), align=4096))
    ranges = [(0x10_0000 + 4096 * page, 4096) for page in range(64)]
    truth = [memory[4096 * page : 4096 * (page + 1)] for page in range(64)]
    assert [ElfCore(path).read(*where) for where in ranges] == truth
    assert judges.libkdumpfile_read(path, ranges) == truth
    assert judges.drgn_read(path, ranges) == truth
