"""Files that are no dumps: each is called by its name, with what makes a dump of it; none is memory.

The files are the smallest ones by the published descriptions of their formats, built by hand; those that
programs of this machine make are made by these.
"""

from __future__ import annotations

import shlex
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf_builder import Load, build_elf, note
from oracles.lime_builder import build_lime

import vmdump
from vmdump.errors import CapabilityError, FormatError, RequestError, VmdumpError
from vmdump.formats.foreign import HEAD, KINDS, TAIL, recognise

PAGE = 4096


def at(*pieces: tuple[int, bytes], size: int = 3 * PAGE) -> bytes:
    data = bytearray(size)
    for offset, piece in pieces:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


def le32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def be64(number: int) -> bytes:
    return struct.pack(">Q", number)


def le64(number: int) -> bytes:
    return struct.pack("<Q", number)


LIME = build_lime([(0x1000, bytes(range(256)) * 64)])
# What each is called, and what the way out says.
FILES: dict[str, tuple[bytes, str, str]] = {
    "savevm": (at((0, b"QEVM\0\0\0\3")), "migration stream of QEMU", "-incoming"),
    "mapped-ram": (at((0, b"QEVM\0\0\0\3"), (60, b"mapped-ram")), "mapped-ram", "vmdump dump qmp:"),
    "virsh save": (at((0, b"LibvirtQemudSave" + le32(2))), "save image of libvirt", "virsh dump"),
    "virsh save, torn": (at((0, b"LibvirtQemudPart" + le32(2))), "not finished", "virsh dump --memory-only"),
    **{
        f"vmss {magic:#x}": (at((0, le32(magic, 8, 3))), "VMware", "vmss2core")
        for magic in (0xBED0BED0, 0xBED2BED0, 0xBED1BED1, 0xBED2BED2, 0xBED3BED3, 0xBAD1BAD1, 0xBAD2BAD2)
    },
    "vbox": (at((0, b"\x7fVirtualBox SavedState V2.0\n")), "VirtualBox", "dumpvmcore"),
    "xl save": (at((0, b"Xen saved domain, xl format\n \0 \r")), "saved domain of Xen", "AVML"),
    "libxl": (at((0, be64(0x4C6962786C466D74))), "saved domain of Xen", "AVML"),
    "libvirt xen": (at((0, b"libvirt-xml\n \0 \r")), "saved domain of Xen", "AVML"),
    "firecracker": (at((0, le64(0x0710198486640000))), "Firecracker", "raw:MEMORY"),
    "firecracker arm": (at((0, le64(0x07101984AAAA0000))), "Firecracker", "raw:MEMORY"),
    "cloud-hypervisor": (b'{"snapshots":{"x":{"snapshot_data":{}}}}', "Cloud Hypervisor", "raw:memory"),
    "PAGEDU64": (at((0, b"PAGEDU64" + le32(15, 17763))), "Windows (64-bit)", "vol -f"),
    "PAGEDUMP": (at((0, b"PAGEDUMP" + le32(15, 2600))), "Windows (32-bit)", "vol -f"),
    "minidump": (at((0, b"MDMP\x93\xa7")), "minidump", "WinDbg"),
    "ZDMP": (at((0, b"ZDMP")), "DumpIt", "Z2Dmp"),
    **{
        f"hiberfil {magic!r}": (at((0, magic)), "hibernation file of Windows", "vol -f")
        for magic in (b"hibr", b"HIBR", b"wake", b"WAKE", b"RSTR")
    },
    "diskdump": (at((0, b"DISKDUMP")), "diskdump", "crash"),
    "s390": (at((0, be64(0xA8190173618F23FD))), "s390", "zgetdump"),
    "s390 ext": (at((0, be64(0xA8190173618F23FE))), "s390", "zgetdump"),
    "lkcd le": (at((0, le64(0xA8190173618F23ED))), "LKCD", "crash"),
    "lkcd be": (at((0, be64(0xA8190173618F23ED))), "LKCD", "crash"),
    "lkcd live": (at((0, le64(0xA8190173618F23CD))), "LKCD", "crash"),
    "sadump": (at((0, le32(0x75646173, 0x0000706D))), "sadump", "makedumpfile"),
    "solaris": (at((0, le32(0xDEFEC8ED))), "Solaris", "mdb"),
    "freebsd mini": (at((0, b"minidump FreeBSD/amd64\0\0")), "FreeBSD", "kgdb"),
    "freebsd": (at((0, b"FreeBSD Kernel Dump\0")), "FreeBSD", "savecore"),
    "mach-o": (at((0, le32(0xFEEDFACF, 0x01000007, 3, 4))), "core of macOS", "lldb"),
    "hibernated": (at((4086, b"S1SUSPEND")), "hibernation image of Linux", "vmdump dump"),
    "swap": (at((4086, b"SWAPSPACE2")), "swap area", "no memory"),
    "swap 64K": (at((65526, b"SWAPSPACE2"), size=1 << 17), "swap area", "no memory"),
    "E01": (at((0, b"EVF\x09\x0d\x0a\xff\x00")), "EnCase", "ewfexport"),
    "Ex01": (at((0, b"EVF2\r\n\x81\x00")), "EnCase", "ewfexport"),
    "AFF": (at((0, b"AFF10\r\n\0")), "AFF", "affconvert"),
    "AFF4": (at((0, b"PK\3\4"), (30, b"aff4%3A%2F%2F")), "AFF4", "aff4imager"),
    "qcow2": (at((0, b"QFI\xfb\0\0\0\3")), "qcow2", "-loadvm"),
    "vmdk": (at((0, b"KDMV\1\0\0\0")), "VMDK", "no memory"),
    "vmdk esx": (at((0, b"COWD")), "VMDK", "no memory"),
    "vmdk text": (b"# Disk DescriptorFile\nversion=1\n", "VMDK", "no memory"),
    "vdi": (at((0, b"<<< Oracle VM VirtualBox "), (0x40, le32(0xBEDA107F))), "VDI", "no memory"),
    "vhdx": (at((0, b"vhdxfile")), "VHDX", "no memory"),
    "vhd": (at((0, b"conectix")), "VHD", "no memory"),
    "vhd fixed": (at((3 * PAGE - 512, b"conectix")), "VHD", "no memory"),
    "qed": (at((0, b"QED\0")), "QED", "no memory"),
    "luks": (at((0, b"LUKS\xba\xbe\0\2")), "LUKS", "no memory"),
    "gpt": (at((510, b"\x55\xaa"), (512, b"EFI PART")), "GPT", "no memory"),
    "iso": (at((32769, b"CD001"), size=1 << 16), "ISO 9660", "no memory"),
    "lz4": (at((0, le32(0x184D2204))), "lz4", "unpack it: unlz4 <"),
    "lzop": (at((0, b"\x89LZO\0\r\n\x1a\n")), "lzop", "unpack it: lzop -d <"),
    "lzip": (at((0, b"LZIP\1")), "lzip", "unpack it: lzip -d <"),
    "lzma": (at((0, b"\x5d\0\0\x80\0" + b"\xff" * 8)), "lzma", "unpack it: unlzma <"),
    "compress": (at((0, b"\x1f\x9d\x90")), "compress", "unpack it: gunzip <"),
    "snappy": (at((0, b"\xff\6\0\0sNaPpY")), "snappy", "unpack it: python3 -m snappy"),
    "7z": (at((0, b"7z\xbc\xaf\x27\x1c")), "7z", "unpack it: 7z x"),
    "rar": (at((0, b"Rar!\x1a\7\1\0")), "rar", "unpack it: unrar"),
    "openssl": (at((0, b"Salted__12345678")), "openssl", "openssl enc -d"),
    "lime.zlib": (zlib.compress(LIME, 1), "compressed by zlib", "unpack it: python3"),
    "bzImage": (at((0, b"MZ"), (0x1FE, b"\x55\xaaX\xebHdrS")), "kernel image of x86", "no memory"),
    "Image": (at((0, b"MZ"), (0x38, b"ARM\x64")), "kernel image of AArch64", "no memory"),
    "Image riscv": (at((0, b"MZ"), (0x30, b"RISCV\0\0\0RSC\5")), "kernel image of RISC-V", "no memory"),
    "uImage": (at((0, b"\x27\5\x19\x56")), "U-Boot", "no memory"),
    "exe": (at((0, b"MZ"), (0x3C, b"\x80"), (0x80, b"PE\0\0")), "program of Windows", "no memory"),
    "dmesg": (b"[    0.000000] Linux version 6.1.0\n" * 9, "kernel's log", "vmdump dmesg"),
    "pstore": (b"Oops#1 Part1\n<4>[ 9.10] Call Trace\n", "kernel's log", "vmdump dmesg"),
}  # fmt: skip
PROCESS = note(b"CORE", 1, bytes(336)) + note(b"CORE", 3, bytes(40) + b"%s".ljust(96, b"\0"))
AUXV = note(b"CORE", 6, bytes(320))


def refused(path: Path | str) -> VmdumpError:
    with pytest.raises(VmdumpError) as caught:
        vmdump.open(path)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_called_by_its_name(name: str, tmp_path: Path) -> None:
    data, called, way_out = FILES[name]
    path = tmp_path / "it's a dump"
    path.write_bytes(data)
    error = refused(path)
    assert isinstance(error, CapabilityError)
    assert error.exit_code == 7
    assert called in str(error)
    what, _, advice = str(error).partition("; ")
    assert way_out in advice
    assert "vmdump does not read" in what
    assert "raw:" not in str(error) or "raw:MEMORY" in advice or "raw:memory" in advice
    # A command to paste has the name quoted for a shell.
    assert (
        str(path) not in advice or shlex.quote(str(path)) in advice or shlex.quote(f"{path}.kdump") in advice
    )
    with pytest.raises(VmdumpError, match="vmdump does not read"):
        vmdump.repair(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_kind_is_tried() -> None:
    found = {kind.name for data, _, _ in FILES.values() if (kind := recognise(data[:HEAD], data[-TAIL:]))}
    packed = ("by xz", "by zstd", "by gzip", "by bzip2", "of zip", "of tar", "of cpio")  # by real files
    assert not [kind.name for kind in KINDS if kind.name not in found and not kind.name.endswith(packed)]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("zip", "zip -q {new} core"),
        ("7z", "7z a -bd {new} core"),
        ("xz", "xz -c core > {new}"),
        ("zstd", "zstd -qc core > {new}"),
        ("lz4", "lz4 -qc core > {new}"),
        ("lzop", "lzop -c core > {new}"),
        ("lzip", "lzip -c core > {new}"),
        ("lzma", "xz --format=lzma -c core > {new}"),
        ("compress", "compress -c core > {new}"),
        ("tar", "tar -cf {new} core"),
        ("cpio", "echo core | cpio -o -H newc > {new}"),
        ("zlib", "python3 -c 'import os, zlib; os.write(1, zlib.compress(open(0, \"rb\").read()))' "
            "< core > {new}"),
    ],
)  # fmt: skip
def test_what_really_packs_is_unpacked_by_the_line(name: str, command: str, tmp_path: Path) -> None:
    """The program's own file, and the command of the error message, pasted into a shell."""
    judges.require(shlex.split(command.partition("| ")[2] or command)[0])
    core = build_elf([Load(0, bytes(range(256)) * 32)])
    (tmp_path / "core").write_bytes(core)
    packed = f"packed.{name}"  # zip and 7z go by the suffix, or add it
    subprocess.run(command.format(new=packed), shell=True, check=True, cwd=tmp_path, capture_output=True)
    path = tmp_path / "it's packed"
    (tmp_path / packed).rename(path)
    error = refused(path)
    assert name in str(error)
    line = str(error).partition("unpack it: ")[2]
    judges.require(shlex.split(line)[0])
    subprocess.run(line, shell=True, check=True, cwd=tmp_path, capture_output=True)
    assert Path(f"{path}.unpacked").read_bytes() == core


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("empty", b"", "the file is empty"),
        ("zeros", bytes(5 * PAGE), "nothing but zeros"),
        ("text", b'#!/bin/sh\necho "hello"\n', "this is a text"),
    ],
)
def test_no_memory_at_all(name: str, data: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    error = refused(path)
    assert isinstance(error, FormatError)
    assert told in str(error)
    assert "raw:" not in str(error)


def test_a_hole_of_any_size_is_zeros(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 40)
    assert "nothing but zeros" in str(refused(tmp_path / "hole"))


def test_only_what_is_not_known_may_be_raw_memory(tmp_path: Path) -> None:
    path = tmp_path / "guest's ram"
    path.write_bytes(bytes(PAGE) + b"\xf0\x53\xff\x00" * 1024)
    error = refused(path)
    assert isinstance(error, FormatError)
    raw = shlex.split(str(error).rpartition("raw memory is written ")[2])
    with vmdump.open(raw[0]) as dump:
        assert dump.read(PAGE, 2) == b"\xf0\x53"


def test_raw_is_for_memory_only(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    """Nothing at address 0 begins like this; elsewhere memory may hold anything."""
    for data, called in (
        (FILES["qcow2"][0], "qcow2"),
        (LIME, "LiME"),
        (build_elf([Load(0, bytes(PAGE))]), "ELF"),
    ):
        path = tmp_path / "file"
        path.write_bytes(data.ljust(-(-len(data) // PAGE) * PAGE, b"\0"))
        for command in ("info", "dump"):
            words = (tmp_path / "out",) if command == "dump" else ()
            done = run_vmdump(command, f"raw:{path}", *words)
            assert done.returncode == CapabilityError.exit_code, done.stderr
            assert called.encode() in done.stderr
            assert str(path).encode() in done.stderr
        assert run_vmdump("info", f"raw:{path}?base=0x40000000").returncode == 0
    path.write_bytes(b"text" * 1024)
    assert run_vmdump("info", f"raw:{path}").returncode == 0


# ELF files that are no guests


def test_core_of_a_process(tmp_path: Path) -> None:
    loads = [Load(0, bytes([n]) * 8192, vaddr=0x55D550000000 + n * 0x10000) for n in range(4)]
    for notes in (PROCESS + AUXV, PROCESS, b""):
        path = tmp_path / "core"
        path.write_bytes(build_elf(loads, notes=notes))
        error = refused(path)
        assert isinstance(error, CapabilityError)
        assert "core of a process, not of a guest" in str(error)


def test_core_of_qemu_itself(tmp_path: Path) -> None:
    path = tmp_path / "core of qemu"
    notes = note(b"CORE", 1, bytes(336)) + AUXV
    notes += note(
        b"CORE", 3, bytes(40) + b"qemu-system-x86\0" + b"/usr/bin/qemu-system-x86_64 -m 1".ljust(80, b"\0")
    )
    path.write_bytes(build_elf([Load(0, bytes(8192), vaddr=0x7F0000000000)], notes=notes))
    error = refused(path)
    assert isinstance(error, CapabilityError)
    assert "core of the process qemu-system-x86_64, not of its guest" in str(error)
    assert "dump-guest-memory" in str(error)
    assert " /usr/bin/qemu-system-x86_64 " in str(error)
    assert shlex.quote(str(path)) in str(error)


def test_real_core_of_a_process(tmp_path: Path) -> None:
    judges.require("gcore")
    sleeping = subprocess.Popen(["sleep", "100"])
    try:
        done = subprocess.run(
            ["gcore", "-o", tmp_path / "core", str(sleeping.pid)], capture_output=True, text=True, check=False
        )
    finally:
        sleeping.kill()
        sleeping.wait()
    if done.returncode:
        pytest.skip(done.stderr)
    assert "core of a process" in str(refused(tmp_path / f"core.{sleeping.pid}"))


def test_guests_are_no_processes() -> None:
    """With VMCOREINFO, or with memory that is there once, whatever else is said."""
    vmcoreinfo = note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\n")
    loads = [Load(0x1000, bytes(PAGE), vaddr=0xFFFF888000001000)]
    for notes, memory in (
        (PROCESS + AUXV + vmcoreinfo, loads),
        (PROCESS, loads),
        (b"", [Load(0, bytes(PAGE))]),
    ):
        with vmdump.open(build_elf(memory, notes=notes)) as dump:
            assert dump.size == PAGE
    # Two virtual addresses of the one page at 0.
    twice = [Load(0, bytes(PAGE), vaddr=PAGE), Load(0, vaddr=9 * PAGE, alias=0, filesz=PAGE)]
    with vmdump.open(build_elf(twice)) as dump:
        assert dump.size == PAGE


@pytest.mark.parametrize("bits", [32, 64])
def test_core_of_xen(bits: int, tmp_path: Path) -> None:
    size = 64 if bits == 64 else 40
    head = bytearray(build_elf([], bits=bits, xnum=True, phnum=0)[: 64 if bits == 64 else 52])
    struct.pack_into("<6H", head, len(head) - 12, len(head), 0, 0, size, 7, 6)
    path = tmp_path / "xen.core"
    path.write_bytes(bytes(head) + bytes(7 * size))
    error = refused(path)
    assert isinstance(error, CapabilityError)
    assert "Xen" in str(error)
    assert shlex.quote(str(path)) in str(error)


@pytest.mark.parametrize(("e_type", "told"), [(1, "kernel module"), (2, "vmlinux"), (3, "vmlinux")])
def test_elf_files_that_are_no_cores(e_type: int, told: str, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(build_elf([Load(0x1000000, bytes(PAGE))], e_type=e_type))
    error = refused(path)
    assert isinstance(error, FormatError)
    assert told in str(error)


def test_options_are_named_as_before(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(FILES["qcow2"][0])
    with pytest.raises(RequestError, match="not a LiME or AVML file"):
        vmdump.open(f"lime:{tmp_path}/disk")
