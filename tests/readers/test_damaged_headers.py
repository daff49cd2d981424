"""Fields of a kdump header that are damaged: whoever knows better is believed, and no output has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracles import judges
from oracles.elf_builder import note
from oracles.kdump import Kdump
from oracles.kdump_builder import Build, build_kdump, pack_names

import vmdump

PAGE = 4096
RELEASE = b"5.15.0-46-generic"
NAMES = pack_names(b"Linux", b"node", RELEASE, b"#49-Ubuntu SMP", b"x86_64", b"(none)")
UTS = 20 * PAGE + 32
"""Guest-physical address of init_uts_ns."""
VMCOREINFO = (
    b"OSRELEASE=" + RELEASE + b"\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=%x\nSYMBOL(swapper_pg_dir)=%x\n"
    b"OFFSET(uts_namespace.name)=4\nNUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n"
) % (0xFFFF_FFFF_8000_0000 + UTS, 0xFFFF_FFFF_8000_0000 + 24 * PAGE)
PRSTATUS = note(b"CORE", 1, bytes(336))


def build(names: bytes = NAMES, *, notes: bytes = PRSTATUS, in_memory: bytes = b"", **more: object) -> bytes:
    """A guest of 64 pages; the names are in its header, and in its memory if they are given."""
    memory = np.random.default_rng(seed=5).integers(0, 256, 64 * PAGE, np.uint8)
    if in_memory:
        memory[UTS + 4 - 16 * PAGE :][: len(in_memory)] = np.frombuffer(in_memory, np.uint8)
    pages = {16 + index: page.tobytes() for index, page in enumerate(memory.reshape(64, PAGE))}
    told = replace(Build(pages, names=names, notes=notes, vmcoreinfo=VMCOREINFO), **more)  # type: ignore[arg-type]
    return build_kdump(replace(told, sub={"dump_level": 1, **told.sub}))


def written(data: bytes, folder: Path) -> Kdump:
    """What is written of a dump, after others' readers have opened it."""
    source, path = folder / "source", folder / "written"
    source.write_bytes(data)
    vmdump.convert(source, path, force=True)
    kdump = Kdump(path).check()
    told = judges.libkdumpfile_attributes(path, ["arch.name", "linux.uts.release", "linux.uts.machine"])
    assert told == {
        "arch.name": "x86_64",
        "linux.uts.release": RELEASE.decode(),
        "linux.uts.machine": "x86_64",
    }
    page = 17 * PAGE
    with vmdump.open(source) as dump:
        assert judges.drgn_read(path, [(page, PAGE)]) == [dump.read(page, PAGE)]
    return kdump


@pytest.mark.parametrize("notes", [PRSTATUS, b""], ids=["registers", "no registers"])
@pytest.mark.parametrize(
    "names", [NAMES[4:] + bytes(4), b"\1\0\0\0" + NAMES[:-4]], ids=["cut off", "something in front"]
)
def test_names_that_were_read_four_bytes_off(names: bytes, notes: bytes, tmp_path: Path) -> None:
    """makedumpfile 1.6.7 with Linux 5.11 and later, where struct uts_namespace begins with the names."""
    kdump = written(build(names, notes=notes), tmp_path)
    names_right = [name.rstrip(b"\0").decode() for name in (NAMES[at : at + 65] for at in range(0, 390, 65))]
    assert list(kdump.uts.values()) == names_right


@pytest.mark.parametrize(
    "names",
    [
        pack_names(b"Linux", b"node", b"4.4.0", b"#49-Ubuntu SMP", b"x86_64", b"(none)"),
        pack_names(b"Linux", b"node", b"", b"#49-Ubuntu SMP", b"x86_64", b"(none)"),
        pack_names(b"Linux", b"no\x1b[2Jde", RELEASE, b"#49-Ubuntu SMP", b"x86_64", b"(none)"),
        pack_names(b"Linux", b"node", RELEASE, b"v" * 65, b"x86_64", b"(none)"),
        pack_names(b"", b"", b"", b"", b"\xff\xff", b""),
        pack_names(b"Unknown", b"", b"", b"", b"Unknown", b""),
        b"\xff" * 390,
        NAMES[7:] + bytes(7),
    ],
    ids=[
        *("another release", "no release", "control characters", "no end", "nothing", "Unknown", "ones"),
        "seven bytes off",
    ],
)
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "not in memory"])
def test_names_that_are_wrong(names: bytes, in_memory: bool, tmp_path: Path) -> None:
    kdump = written(build(names, in_memory=NAMES if in_memory else b""), tmp_path)
    node, version = ("node", "#49-Ubuntu SMP") if in_memory else ("", "unknown")
    assert list(kdump.uts.values())[:5] == ["Linux", node, RELEASE.decode(), version, "x86_64"]


def test_memory_is_believed_more_than_the_header(tmp_path: Path) -> None:
    mine = pack_names(b"Linux", b"of-memory", RELEASE, b"#50", b"x86_64", b"(none)")
    assert written(build(in_memory=mine), tmp_path).uts["nodename"] == "of-memory"
    # ... if it is that kernel's.
    other = pack_names(b"Linux", b"of-memory", b"6.6.6", b"#50", b"x86_64", b"(none)")
    assert written(build(in_memory=other), tmp_path).uts["nodename"] == "node"


def test_a_header_without_a_version_and_a_machine(tmp_path: Path) -> None:
    kdump = written(build(pack_names(b"Linux", b"node", RELEASE, b"", b"", b"")), tmp_path)
    assert list(kdump.uts.values()) == ["Linux", "node", RELEASE.decode(), "unknown", "x86_64", ""]


def test_names_of_another_system_are_kept() -> None:
    names = pack_names(b"FreeBSD", b"node", b"14.1", b"r1", b"x86_64", b"")
    with vmdump.open(build(names, vmcoreinfo=b"")) as dump:
        assert (dump.utsname.sysname, dump.utsname.release) == (b"FreeBSD", b"14.1")


def test_names_in_a_page_that_is_damaged() -> None:
    data = bytearray(build(in_memory=NAMES, codecs=["zlib"]))
    pages = build(in_memory=NAMES)
    with vmdump.open(pages) as dump:
        stored = dump.stored_pages(UTS // PAGE, 1)
        assert stored is not None
    packed = stored.data.tobytes()
    at = bytes(data).index(packed)
    data[at : at + len(packed)] = bytes(len(packed))
    with vmdump.open(bytes(data)) as dump:
        assert dump.utsname.nodename == b"node"


@pytest.mark.parametrize("told", [b"\xff" * 300, b"PAGESIZE=4096\n"], ids=["no text", "cut"])
def test_vmcoreinfo_that_is_damaged_in_one_of_two_places(told: bytes, tmp_path: Path) -> None:
    damaged = note(b"VMCOREINFO", 0, told)
    assert written(build(notes=PRSTATUS + damaged), tmp_path).vmcoreinfo == VMCOREINFO
    whole = note(b"VMCOREINFO", 0, VMCOREINFO)
    assert written(build(notes=PRSTATUS + whole, vmcoreinfo=told), tmp_path).vmcoreinfo == VMCOREINFO


@pytest.mark.parametrize(
    "damage",
    [
        {"head": {"nr_cpus": 0x7FFFFFFF}},
        {"head": {"nr_cpus": -5}},
        {"head": {"max_mapnr": 0}},
        {"head": {"max_mapnr": 0xFFFFFFFF}},
        {"head": {"status": 0xFFFFFFF1}},
        {"sub": {"max_mapnr_64": 0}},
        {"sub": {"max_mapnr_64": 1 << 60}},
        {"sub": {"phys_base": 0xDEAD_BEEF_0000}},
        {"sub": {"dump_level": -1}},
        {"sub": {"dump_level": 0x7FFFFFFF}},
    ],
    ids=repr,
)
@pytest.mark.parametrize("notes", [PRSTATUS, b""], ids=["registers", "no registers"])
def test_numbers_that_are_wrong(damage: dict[str, dict[str, int]], notes: bytes, tmp_path: Path) -> None:
    """The output is that of the same dump whose header is right."""
    written(build(notes=notes), tmp_path)
    expected = (tmp_path / "written").read_bytes()
    written(build(notes=notes, **damage), tmp_path)
    assert (tmp_path / "written").read_bytes() == expected
