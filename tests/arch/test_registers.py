"""Registers by name: from QEMU's notes, written as QEMU writes them, and as other readers see them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from helpers.goldens import DATA, MACHINES
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import judges
from oracles.elf import split_notes

import vmdump
from vmdump.arch import ARCHES, Arch, arch_by_name, unknown_arch
from vmdump.errors import FormatError, RequestError
from vmdump.sources.rawfile import RawSource

Golden = Callable[[str, str], Path]

# Architecture: the size of NT_PRSTATUS, and (register, offset, bytes) at both ends of pr_reg, by the headers
# of Linux; ppc is as QEMU has it. Then QEMU's other notes: name, type, size, and a register in the middle.
PRSTATUS: dict[str, tuple[int, tuple[tuple[str, int, int], ...]]] = {
    "x86_64": (336, (("r15", 112, 8), ("rip", 240, 8), ("gs", 320, 8))),
    "i386": (144, (("ebx", 72, 4), ("eip", 120, 4), ("ss", 136, 2))),
    "aarch64": (392, (("x0", 112, 8), ("sp", 360, 8), ("pc", 368, 8), ("pstate", 376, 8))),
    "arm": (148, (("r0", 72, 4), ("sp", 124, 4), ("pc", 132, 4), ("cpsr", 136, 4))),
    "ppc64": (504, (("gpr0", 112, 8), ("nip", 368, 8), ("ccr", 416, 8), ("result", 456, 8))),
    "ppc64le": (504, (("gpr0", 112, 8), ("nip", 368, 8), ("ccr", 416, 8), ("result", 456, 8))),
    "ppc": (328, (("gpr0", 112, 4), ("nip", 240, 4), ("ccr", 264, 4), ("result", 284, 4))),
    "s390x": (336, (("psw_mask", 112, 8), ("psw_addr", 120, 8), ("r15", 248, 8), ("a15", 316, 4))),
    "riscv64": (376, (("pc", 112, 8), ("ra", 120, 8), ("sp", 128, 8), ("t6", 360, 8))),
    "riscv32": (204, (("pc", 72, 4), ("ra", 76, 4), ("sp", 80, 4), ("t6", 196, 4))),
    "loongarch64": (480, (("r0", 112, 8), ("r31", 360, 8), ("era", 376, 8), ("badv", 384, 8))),
    "mips": (256, (("r0", 96, 4), ("r31", 220, 4), ("lo", 224, 4), ("cp0_epc", 232, 4))),
    "mipsel": (256, (("r0", 96, 4), ("r31", 220, 4), ("lo", 224, 4), ("cp0_epc", 232, 4))),
    "mips64": (480, (("r0", 112, 8), ("r31", 360, 8), ("lo", 368, 8), ("cp0_epc", 384, 8))),
    "mips64el": (480, (("r0", 112, 8), ("r31", 360, 8), ("lo", 368, 8), ("cp0_cause", 408, 8))),
}
OTHERS: dict[str, tuple[tuple[bytes, int, int, str, int, int], ...]] = {
    "x86_64": ((b"QEMU", 0, 440, "cr3", 416, 8),),
    "i386": ((b"QEMU", 0, 440, "cr0", 392, 8),),
    "aarch64": ((b"CORE", 2, 528, "v31", 496, 16),),
    "arm": ((b"LINUX", 0x400, 260, "fpscr", 256, 4),),
    "ppc64": (
        (b"CORE", 2, 264, "fpscr", 256, 8),
        (b"CORE", 0x100, 544, "vr31", 496, 16),
        (b"CORE", 0x102, 256, "vsr31_low", 248, 8),
        (b"CORE", 0x101, 140, "spe_acc", 128, 8),
    ),
    "ppc": ((b"CORE", 2, 260, "fpscr", 256, 4), (b"CORE", 0x100, 544, "vscr", 524, 4)),
    "s390x": (
        (b"CORE", 2, 136, "f15", 128, 8),
        (b"LINUX", 0x305, 4, "prefix", 0, 4),
        (b"LINUX", 0x304, 128, "cr1", 8, 8),
        (b"LINUX", 0x301, 8, "timer", 0, 8),
        (b"LINUX", 0x302, 8, "todcmp", 0, 8),
        (b"LINUX", 0x303, 4, "todpreg", 0, 4),
        (b"LINUX", 0x309, 128, "v15_low", 120, 8),
        (b"LINUX", 0x30A, 256, "v16", 0, 16),
        (b"LINUX", 0x30B, 32, "gs_epl_a", 24, 8),
    ),
    "loongarch64": ((b"CORE", 2, 268, "fcsr", 264, 4),),
}
FLOATING_POINT = {"x86_64", "i386", "riscv64", "riscv32", "mips", "mipsel", "mips64", "mips64el"}
SVE = 0x405


def registers_of(arch: Arch) -> dict[str, int]:
    """Give the width in bytes of every register for which the architecture has a place."""
    widths: dict[str, int] = {}
    for kind in arch.register_notes:
        for field in kind.layout.fields:
            if field.name in kind.names and kind.type != SVE:
                size = int(field.code[1:])
                widths[field.name] = min(size, widths.get(field.name, size))
    return widths


def value(name: str, size: int) -> int:
    """Make up a value that tells byte orders, halves and neighbours apart."""
    return int.from_bytes((name.encode() * 16)[:size], "little")


@pytest.mark.parametrize("machine", MACHINES)
def test_notes_of_qemu_are_rebuilt_from_the_registers(machine: str, golden: Golden) -> None:
    with vmdump.open(golden(machine, "elf")) as dump:
        assert len(dump.cpus) == dump.nr_cpus
        prefix = "<" if dump.byteorder == "little" else ">"
        mine = split_notes(dump.arch.notes(dump.cpus, dump.byteorder), prefix)
        qemus = split_notes(dump.notes, prefix)
        if dump.arch.name.startswith("ppc"):
            # QEMU numbers no vCPU here; a debugger takes them all for one.
            pids = [struct.unpack_from(">I", note.desc, 32)[0] for note in mine if note.type == 1]
            assert pids == list(range(1, dump.nr_cpus + 1))
            mine = [
                note._replace(desc=note.desc[:32] + bytes(4) + note.desc[36:]) if note.type == 1 else note
                for note in mine
            ]
        assert mine == qemus


def test_registers_of_a_real_guest(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes((DATA / "x86_64-linux-128M" / "elf.head64k").read_bytes())
    os.truncate(core, 1 << 28)  # only its head is there
    with vmdump.open(core) as dump:
        first, second = dump.cpus
        text = dump.vmcoreinfo.symbol("_stext")
        assert text is not None
        assert text < first["rip"] < text + (1 << 24)
        assert (first["cs"], first["rflags"], first["cr0"]) == (0x10, 0x246, 0x80050033)
        assert first["cr3"]
        assert first["cr4"] & 0x20
        assert first["gs_base"] != second["gs_base"]
        assert not {"pid", "version", "size", "pad_signals"} & first.keys()
        assert next(iter(first)) == "r15"
        assert repr(first).startswith("{'r15': 0x")


@pytest.mark.parametrize("arch", [arch.name for arch in ARCHES])
def test_every_register_stands_where_linux_and_qemu_have_it(arch: str) -> None:
    known = arch_by_name(arch)
    size, registers = PRSTATUS[arch]
    others = OTHERS.get(arch, OTHERS["ppc64"] if arch == "ppc64le" else ())
    given = {name: value(name, width) for name, width in registers_of(known).items()}
    prefix = "<" if known.byteorder == "little" else ">"
    first, *rest = split_notes(known.notes([given]), prefix)
    assert (first.name, first.type, len(first.desc)) == (b"CORE", 1, size)
    for name, offset, width in registers:
        assert int.from_bytes(first.desc[offset : offset + width], known.byteorder) == given[name], name
    found = {(note.name, note.type): note.desc for note in rest}
    assert len(found) == len(known.register_notes) - 1 - (arch == "aarch64")
    for name, kind, size, register, offset, width in others:
        desc = found[name, kind]
        assert len(desc) == size
        assert int.from_bytes(desc[offset : offset + width], known.byteorder) == given[register], register


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("arch", [arch.name for arch in ARCHES])
@settings(max_examples=15)  # for each of 30 combinations
@given(data=st.data())
def test_registers_written_are_registers_read(arch: str, byteorder: Any, data: st.DataObject) -> None:
    known = arch_by_name(arch)
    values = st.fixed_dictionaries(
        {}, optional={name: st.integers(0, (1 << 8 * size) - 1) for name, size in registers_of(known).items()}
    )
    given = data.draw(st.lists(values, min_size=1, max_size=3))
    notes = known.notes(given, byteorder)
    read = known.cpus(notes, byteorder)
    assert len(read) == len(given)
    for mine, theirs in zip(given, read, strict=True):
        assert mine.items() <= theirs.items()
        short = {name for pair in known.short_names for name in pair}
        assert not any(value for name, value in theirs.items() if name not in mine.keys() | short)
    assert known.notes(read, byteorder) == notes


@given(
    vector=st.integers(1, 16).map(lambda words: 16 * words),
    number=st.integers(0, 31),
    byteorder=st.sampled_from(["little", "big"]),
)
def test_sve_registers_are_as_long_as_the_vectors(vector: int, number: int, byteorder: Any) -> None:
    arch = arch_by_name("aarch64")
    given = {
        "sve_vl": vector,
        f"z{number}": (1 << 8 * vector) - 2,
        f"p{number % 16}": (1 << vector) - 1,
        "ffr": 5,
        "fpcr": 7,
    }
    notes = arch.notes([{"pc": 1}, given], byteorder)
    # Linux' SVE_PT_SIZE: header, 32 vectors, 17 predicates; then fpsr and fpcr at a multiple of 16.
    size = -(-(16 + 32 * vector + 17 * vector // 8) // 16) * 16 + 16
    prefix = "<" if byteorder == "little" else ">"
    kinds = [(note.name, note.type, len(note.desc)) for note in split_notes(notes, prefix)]
    assert kinds == [
        (b"CORE", 1, 392),
        (b"CORE", 1, 392),
        (b"CORE", 2, 528),
        (b"LINUX", SVE, size),
    ]
    desc = split_notes(notes, prefix)[-1].desc
    assert struct.unpack_from(prefix + "IIH", desc) == (size, size, vector)
    assert desc[16 + number * vector : 16 + (number + 1) * vector] == b"\xfe" + b"\xff" * (vector - 1)
    read = arch.cpus(notes, byteorder)[1]
    assert given.items() <= read.items()
    assert arch.notes(arch.cpus(notes, byteorder), byteorder) == notes


def test_a_ppc_core_of_linux_is_read_too() -> None:
    """Linux has no 64-bit words in front of the registers of a 32-bit machine, QEMU has."""
    words = [0x10000000 + index for index in range(48)]
    desc = struct.pack(">24xI44x48I4x", 7, *words)
    assert len(desc) == 268
    note = struct.pack(">III", 5, len(desc), 1) + b"CORE\0\0\0\0" + desc
    (cpu,) = arch_by_name("ppc").cpus(note)
    assert (cpu["gpr0"], cpu["nip"], cpu["result"]) == (words[0], words[32], words[43])


def test_notes_of_the_other_owner() -> None:
    """Linux calls PowerPC's vectors LINUX; a note LINUX of type 1 is no PRSTATUS."""
    arch = arch_by_name("ppc64")
    first, second = split_notes(arch.notes([{"vr3": 1 << 100}]), ">")
    linux = struct.pack(">III", 6, len(second.desc), second.type) + b"LINUX\0\0\0" + second.desc
    begin = arch.notes([{"nip": 5}])
    other = struct.pack(">III", 6, len(first.desc), 1) + b"LINUX\0\0\0" + bytes(len(first.desc))
    (cpu,) = arch.cpus(begin + linux + other)
    assert (cpu["vr3"], cpu["nip"]) == (1 << 100, 5)


@pytest.mark.parametrize("arch", [arch.name for arch in ARCHES])
def test_other_readers_see_the_registers(arch: str, tmp_path: Path) -> None:
    known = arch_by_name(arch)
    widths = registers_of(known)
    cpus = [{name: value(name, size) for name, size in widths.items()} | {"r1": index} for index in range(2)]
    cpus = [{name: number for name, number in cpu.items() if name in widths} for cpu in cpus]
    source = vmdump.BlockSource(np.ones(65536, np.uint8), arch=arch, cpus=cpus)
    vmdump.dump(source, tmp_path / "core", format="elf")

    shown = judges.readelf(tmp_path / "core", "--notes")
    assert shown.count("NT_PRSTATUS") == 2
    for name, text in (("NT_FPREGSET", "NT_FPREGSET"), ("VFP", "NT_ARM_VFP"), ("CTRS", "NT_S390_CTRS")):
        layouts = [kind.layout.name for kind in known.register_notes]
        assert shown.count(text) == 2 * any(f" {name.removeprefix('NT_')} note" in one for one in layouts)

    with (tmp_path / "core").open("rb") as file:
        segment = next(ELFFile(file).iter_segments("PT_NOTE"))
        found = [note for note in segment.iter_notes() if note["n_type"] in (1, "NT_PRSTATUS")]
    assert len(found) == 2
    for note, cpu in zip(found, cpus, strict=True):
        desc = note["n_descdata"] if "n_descdata" in note else note["n_desc"]
        desc = desc if isinstance(desc, bytes) else desc.encode("latin-1")
        assert len(desc) == PRSTATUS[arch][0]
        for name, offset, width in PRSTATUS[arch][1]:
            assert int.from_bytes(desc[offset : offset + width], known.byteorder) == cpu[name], name

    for output in ("core", "kdump"):
        if output == "kdump":
            vmdump.dump(tmp_path / "core", tmp_path / "kdump")
        with vmdump.open(tmp_path / output) as dump:
            assert dump.nr_cpus == 2
            assert [dict(cpu) for cpu in dump.cpus] == [
                {name: cpu[name] for name in read} for cpu, read in zip(cpus, dump.cpus, strict=True)
            ]


# What libkdumpfile calls registers by another name; it has no registers of the other architectures.
LIBKDUMPFILE: dict[str, dict[str, str]] = {
    "x86_64": {},
    "i386": {},
    "aarch64": {"x30": "lr"},
    "ppc64": {"nip": "pc", "orig_gpr3": "or3", "link": "lr", "result": "res"},
    "s390x": {"psw_mask": "pswm", "psw_addr": "pswa"},
}
LIBKDUMPFILE["ppc64"] |= {f"gpr{number}": f"r{number}" for number in range(32)}
LIBKDUMPFILE["ppc64le"] = LIBKDUMPFILE["ppc64"]


@pytest.mark.parametrize("arch", LIBKDUMPFILE)
def test_libkdumpfile_reads_the_registers(arch: str, tmp_path: Path) -> None:
    known = arch_by_name(arch)
    status = {field.name for field in known.register_notes[0].layout.fields}
    widths = {name: size for name, size in registers_of(known).items() if name in status}
    cpus = [{name: value(name[::step], size) for name, size in widths.items()} for step in (1, -1)]
    text = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"
    source = vmdump.BlockSource(np.ones(65536, np.uint8), arch=arch, cpus=cpus, vmcoreinfo=text)
    vmdump.dump(source, tmp_path / "kdump")
    names = {name: LIBKDUMPFILE[arch].get(name, name) for name in widths}
    for index, cpu in enumerate(cpus):
        wanted = [f"cpu.{index}.reg.{name}" for name in names.values()]
        told = judges.libkdumpfile_attributes(tmp_path / "kdump", wanted)
        assert {name: told[f"cpu.{index}.reg.{theirs}"] for name, theirs in names.items()} == cpu
        pid = f"cpu.{index}.pid"
        assert judges.libkdumpfile_attributes(tmp_path / "kdump", [pid]) == {pid: index + 1}


# What drgn calls some of them; it unwinds none of the other architectures.
DRGN = {
    "aarch64": {"x0": "x0", "x29": "x29", "sp": "sp"},
    "arm": {"r0": "r0", "r12": "r12", "sp": "sp", "lr": "lr", "pc": "pc"},
    "ppc64": {"gpr0": "r0", "gpr31": "r31"},
    "ppc64le": {"gpr1": "r1", "gpr30": "r30"},
    "s390x": {"r0": "r0", "r15": "r15", "psw_mask": "pswm", "psw_addr": "pswa"},
}


@pytest.mark.parametrize("arch", DRGN)
def test_drgn_reads_the_registers(arch: str, tmp_path: Path) -> None:
    judges.require("drgn")
    import drgn

    widths = registers_of(arch_by_name(arch))
    cpus = [{name: value(name[::step], widths[name]) for name in DRGN[arch]} for step in (1, -1)]
    source = vmdump.BlockSource(np.ones(65536, np.uint8), arch=arch, cpus=cpus)
    vmdump.dump(source, tmp_path / "core", format="elf")
    program = drgn.Program()
    program.set_core_dump(tmp_path / "core")
    for index, cpu in enumerate(cpus):
        registers = program.thread(index + 1).stack_trace()[0].registers()
        assert {name: registers[theirs] for name, theirs in DRGN[arch].items()} == cpu


@pytest.mark.parametrize("machine", MACHINES)
def test_qemus_kdump_of_an_unknown_machine(machine: str, golden: Golden, tmp_path: Path) -> None:
    """QEMU calls all machines but x86 "Unknown"; the registers' notes tell which one it is."""
    with vmdump.open(golden(machine, "elf")) as elf, vmdump.open(golden(machine, "kdump-zlib")) as kdump:
        if machine != "x86_64-q35":  # QEMU says x86_64 there, and has the registers of a 32-bit machine
            assert kdump.arch == elf.arch
            assert [dict(cpu) for cpu in kdump.cpus] == [dict(cpu) for cpu in elf.cpus]
        assert kdump.utsname == elf.utsname or machine == "x86_64-q35"
        assert kdump.utsname.machine not in (b"", b"Unknown")


def test_one_register_is_enough() -> None:
    guest = vmdump.BlockSource(bytearray(8192), cpus=[{"rip": 5}, {"cr3": 0x1000}])
    assert guest.nr_cpus == 2
    assert (guest.cpus[0]["rip"], guest.cpus[0]["cr3"]) == (5, 0)
    assert (guest.cpus[1]["rip"], guest.cpus[1]["cr3"]) == (0, 0x1000)
    assert guest.cpus[0] != guest.cpus[1]


def test_i386_registers_have_two_names() -> None:
    (cpu,) = vmdump.BlockSource(bytearray(4096), arch="i386", cpus=[{"eip": 5, "rsp": 0x1_0000_0006}]).cpus
    assert (cpu["eip"], cpu["rip"], cpu["esp"], cpu["rsp"]) == (5, 5, 6, 0x1_0000_0006)


def test_a_raw_file_with_registers(tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(bytes(8192))
    with RawSource(tmp_path / "ram", arch="aarch64", cpus=[{"pc": 1 << 63, "v3": 1 << 100}]) as guest:
        assert guest.cpus[0]["pc"] == 1 << 63
        assert guest.cpus[0]["v3"] == 1 << 100
        vmdump.dump(guest, tmp_path / "out")
    with vmdump.open(tmp_path / "out") as dump:
        assert dump.cpus[0]["v3"] == 1 << 100


@pytest.mark.parametrize(
    ("arch", "cpus", "says"),
    [
        ("x86_64", [{"rip": 1 << 64}], "rip of vCPU 0 is 0x10000000000000000, and it has 64 bits"),
        ("x86_64", [{}, {"cs": 1 << 32}], "cs of vCPU 1"),
        ("x86_64", [{"rip": -1}], "rip of vCPU 0 is -0x1"),
        ("x86_64", [{"eip": 0}], "vCPU 0 has a register 'eip'"),
        ("x86_64", [{"pid": 4}], "'pid'"),
        ("aarch64", [{"z0": 1}], "sve_vl is 0"),
        ("aarch64", [{"sve_vl": 512}], "sve_vl is 512"),
    ],
)
def test_registers_that_are_refused(arch: str, cpus: list[dict[str, int]], says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        vmdump.BlockSource(bytearray(4096), arch=arch, cpus=cpus)
    assert caught.value.parameter == "cpus"
    assert "\n" not in str(caught.value)


def test_registers_twice_are_refused() -> None:
    notes = arch_by_name("x86_64").notes([{}])
    with pytest.raises(RequestError, match="have registers already"):
        vmdump.BlockSource(bytearray(4096), notes=notes, cpus=[{}])


@given(st.data())
def test_hostile_notes_give_what_they_have(data: st.DataObject) -> None:
    """Short, long, doubled and orphaned notes: a mapping of what lies in them whole, never an exception."""
    arch = data.draw(st.sampled_from(ARCHES))
    prefix = "<" if arch.byteorder == "little" else ">"
    notes = b""
    begun = 0
    for _ in range(data.draw(st.integers(0, 6))):
        kind = data.draw(st.sampled_from(arch.register_notes))
        desc = data.draw(st.binary(max_size=700))
        begun += kind.type == 1 and kind.name == b"CORE"
        name = (kind.name + b"\0").ljust(-(-(len(kind.name) + 1) // 4) * 4, b"\0")
        notes += struct.pack(prefix + "III", len(kind.name) + 1, len(desc), kind.type) + name
        notes += desc.ljust(-(-len(desc) // 4) * 4, b"\0")
    read = arch.cpus(notes)
    assert len(read) == begun
    assert all(number >= 0 for cpu in read for number in cpu.values())


def test_a_qemu_note_of_before_kernel_gs_base_is_read() -> None:
    arch = arch_by_name("x86_64")
    desc = split_notes(arch.notes([{"cr4": 0x20}]), "<")[1].desc[:432]
    note = struct.pack("<III", 5, len(desc), 0) + b"QEMU\0\0\0\0" + desc
    (cpu,) = arch.cpus(arch.notes([{}])[: 20 + 336] + note)
    assert cpu["cr4"] == 0x20
    assert "kernel_gs_base" not in cpu


def test_more_vcpus_than_any_guest_has() -> None:
    notes = (struct.pack("<III", 5, 0, 1) + b"CORE\0\0\0\0") * 8193
    with pytest.raises(FormatError, match="more than 8192 vCPUs"):
        arch_by_name("x86_64").cpus(notes)


def test_an_unknown_architecture_counts_its_vcpus() -> None:
    arch = unknown_arch(9999, 64, "little")
    assert [dict(cpu) for cpu in arch.cpus(arch_by_name("x86_64").notes([{}, {}]))] == [{}, {}]
    with pytest.raises(RequestError, match="no register notes are known"):
        vmdump.BlockSource(bytearray(4096), arch=arch, cpus=[{}])
