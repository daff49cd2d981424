"""VMCOREINFO of live guests: from QEMU, out of memory, or from a file; and what readers make of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from oracles import judges, lime_builder
from oracles.elf import ElfCore, split_notes
from oracles.kdump import UTS_FIELDS, Kdump

from live.dumping import MIB, refused, succeeds
from live.guests import Guest

REQUEST, SOURCE = 2, 3


def lines(text: bytes) -> dict[str, str]:
    """VMCOREINFO as a dict."""
    return dict(line.split("=", 1) for line in text.decode().rstrip("\0").splitlines() if "=" in line)


def addresses_differ(key: str) -> bool:
    """Whether two boots of one kernel may differ in a line: KASLR, and where memory happens to be."""
    moved = ("SYMBOL(", "CRASHTIME", "NUMBER(phys_base)", "KERNELOFFSET", "NUMBER(sme_mask")
    return key.startswith(moved) or key.endswith("_START)")


def program_of(path: Path):  # type: ignore[no-untyped-def]
    judges.require("drgn")
    import drgn

    program = drgn.Program()
    program.set_core_dump(path)
    return program


@pytest.fixture(scope="module")
def dumps(linux_guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The 4 GiB guest in both formats."""
    folder = tmp_path_factory.mktemp("dumps")
    paths = {"elf": folder / "elf", "kdump-zlib": folder / "kdump"}
    for name, path in paths.items():
        succeeds(linux_guest, path, "-f", name)
    yield paths
    for path in paths.values():
        path.unlink()


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_drgn_opens_the_guest(name: str, dumps: dict[str, Path]) -> None:
    program = program_of(dumps[name])
    text = lines(Kdump(dumps["kdump-zlib"]).vmcoreinfo)
    assert program["UTS_RELEASE"].string_().decode() == text["OSRELEASE"]
    # Through the guest's page tables: struct uts_namespace holds the names some bytes from its start.
    address = int(text["SYMBOL(init_uts_ns)"], 16)
    data = program.read(address, 64 + 6 * 65)
    begin = data.index(b"Linux\0")
    names = [data[begin + 65 * i : begin + 65 * (i + 1)].split(b"\0")[0] for i in range(6)]
    assert names[0] == b"Linux"
    assert names[2].decode() == text["OSRELEASE"]
    assert names[4] == b"x86_64"
    banner = program.read(int(text["SYMBOL(_stext)"], 16), 16)
    assert any(banner)


def test_the_headers_of_the_kdump(dumps: dict[str, Path]) -> None:
    kdump = Kdump(dumps["kdump-zlib"]).check()
    text = lines(kdump.vmcoreinfo)
    assert kdump.uts["sysname"] == "Linux"
    assert kdump.uts["release"] == text["OSRELEASE"]
    assert kdump.uts["machine"] == "x86_64"
    assert kdump.uts["version"].startswith("#1 SMP")
    # "(none)" both, as the kernel has it where nobody sets them.
    assert all(kdump.uts[field] for field in UTS_FIELDS), kdump.uts
    # Signed: KASLR puts the kernel below its virtual home as well.
    assert kdump.sub_header["phys_base"] == int(text["NUMBER(phys_base)"])
    assert kdump.header["nr_cpus"] == 2


def test_vmcoreinfo_is_qemus(linux_guest: Guest, dumps: dict[str, Path], scratch: Path) -> None:
    linux_guest.monitor.execute(
        "dump-guest-memory", paging=False, protocol=f"file:{scratch / 'theirs'}", begin=0, length=4096
    )
    theirs = ElfCore(scratch / "theirs").notes
    assert ElfCore(dumps["elf"]).notes == theirs
    kdump = Kdump(dumps["kdump-zlib"])
    assert kdump.notes == theirs
    (note,) = (note for note in split_notes(theirs, "<") if note.name == b"VMCOREINFO")
    assert kdump.vmcoreinfo == note.desc


def test_libkdumpfile_opens_the_guest(dumps: dict[str, Path]) -> None:
    names = ["linux.uts.release", "linux.uts.machine", "linux.vmcoreinfo.lines.OSRELEASE", "cpu.number"]
    told = judges.libkdumpfile_attributes(dumps["kdump-zlib"], names)
    assert told["linux.uts.machine"] == "x86_64"
    assert told["linux.uts.release"] == told["linux.vmcoreinfo.lines.OSRELEASE"]
    assert told["cpu.number"] == 2


def test_makedumpfile_filters_both_to_the_same(dumps: dict[str, Path], scratch: Path) -> None:
    filtered = {}
    for name, path in dumps.items():
        judges.makedumpfile_filter(path, scratch / name, "-c", "-d", "31")
        filtered[name] = Kdump(scratch / name)
    one, other = filtered.values()
    # How many are left is makedumpfile's affair: it knows the page flags of some kernels better than others'.
    assert 1000 < len(one.pfns) < len(Kdump(dumps["kdump-zlib"]).pfns)
    assert one.pfns.tolist() == other.pfns.tolist()
    assert (one.bitmap1, one.bitmap2) == (other.bitmap1, other.bitmap2)
    assert one.descriptors["size"].tolist() == other.descriptors["size"].tolist()
    assert all(mine == theirs for mine, theirs in zip(one.pages(), other.pages(), strict=True))
    whole = Kdump(dumps["kdump-zlib"])
    for pfn in one.pfns[::97].tolist():
        assert one.page(pfn) == whole.page(pfn)


# Without the device


def test_it_is_found_in_memory(private_guest: Guest, dumps: dict[str, Path], scratch: Path) -> None:
    succeeds(private_guest, scratch / "dump")
    kdump = Kdump(scratch / "dump").check(ahead=True)
    found, known = lines(kdump.vmcoreinfo), lines(Kdump(dumps["kdump-zlib"]).vmcoreinfo)
    assert list(found) == list(known)
    assert found["OSRELEASE"] == known["OSRELEASE"]
    assert found["BUILD-ID"] == known["BUILD-ID"]
    differing = {key for key in known if found[key] != known[key]}
    assert all(addresses_differ(key) for key in differing), differing
    assert kdump.uts["release"] == known["OSRELEASE"]
    assert kdump.sub_header["phys_base"] == int(found["NUMBER(phys_base)"])

    program = program_of(scratch / "dump")
    assert program["UTS_RELEASE"].string_().decode() == known["OSRELEASE"]
    data = program.read(int(found["SYMBOL(init_uts_ns)"], 16), 64 + 6 * 65)
    assert b"Linux\0" in data
    # Not the kdump: with the BIOS below 4 GiB and no RAM there, makedumpfile 1.7.2 fails on QEMU's, too.
    succeeds(private_guest, scratch / "elf", "-f", "elf")
    judges.makedumpfile_filter(scratch / "elf", scratch / "filtered", "-c", "-d", "31")
    assert len(Kdump(scratch / "filtered").pfns) > 1000


def test_it_is_found_in_the_memory_of_a_file(
    private_guest: Guest, scratch: Path, run_vmdump: RunVmdump
) -> None:
    """QEMU's own dump of this guest has no note; that one, and its memory alone, tell as much as others."""
    private_guest.monitor.execute("stop")
    private_guest.monitor.dump(scratch / "elf")
    private_guest.monitor.execute("cont")
    core = ElfCore(scratch / "elf")
    assert b"VMCOREINFO" not in core.notes
    with (scratch / "lime").open("wb") as file:
        for load in sorted(core.loads, key=lambda load: load.paddr):
            file.write(lime_builder.header(b"EMiL", 1, load.paddr, load.filesz))
            file.write(core.load_view(load))
    logs = set()
    for name in ("elf", "lime"):
        done = run_vmdump("dump", scratch / name, scratch / f"{name}.kdump")
        assert done.returncode == 0, done.stderr
        told = lines(Kdump(scratch / f"{name}.kdump").check().vmcoreinfo)
        program = program_of(scratch / f"{name}.kdump")
        assert program["UTS_RELEASE"].string_().decode() == told["OSRELEASE"]
        banner = program.read(int(told["SYMBOL(init_uts_ns)"], 16), 64)
        assert b"Linux\0" in banner
        logs.add(judges.makedumpfile_dmesg(scratch / f"{name}.kdump", scratch / f"{name}.log"))
        logs.add(run_vmdump("dmesg", scratch / name).stdout)
    (log,) = logs
    assert b"Linux version" in log


def test_a_file_overrides_it(running_guest: Guest, scratch: Path) -> None:
    running_guest.monitor.execute("stop")
    succeeds(running_guest, scratch / "own")
    own = Kdump(scratch / "own")
    (scratch / "text").write_bytes(own.vmcoreinfo + b"MARK=of the file\n")
    for name in ("kdump-zlib", "elf"):
        succeeds(running_guest, scratch / name, "-f", name, "--vmcoreinfo", scratch / "text")
    kdump, core = Kdump(scratch / "kdump-zlib").check(), ElfCore(scratch / "elf").check_vmdump_layout()
    assert kdump.vmcoreinfo.rstrip(b"\0") == (scratch / "text").read_bytes().rstrip(b"\0")
    for notes in (kdump.notes, core.notes):
        (note,) = (note for note in split_notes(notes, "<") if note.name == b"VMCOREINFO")
        assert note.desc.rstrip(b"\0") == (scratch / "text").read_bytes().rstrip(b"\0")
    assert program_of(scratch / "kdump-zlib")["UTS_RELEASE"].string_().decode() == kdump.uts["release"]


def test_a_file_for_a_guest_that_has_none(private_guest: Guest, running_guest: Guest, scratch: Path) -> None:
    """What was given wins over what would have been found."""
    succeeds(private_guest, scratch / "own")
    text = Kdump(scratch / "own").vmcoreinfo.replace(b"OSRELEASE=", b"OSRELEASE=0.0-given-")
    (scratch / "text").write_bytes(text)
    succeeds(private_guest, scratch / "dump", "--vmcoreinfo", scratch / "text")
    kdump = Kdump(scratch / "dump").check(ahead=True)
    assert kdump.vmcoreinfo.rstrip(b"\0") == text.rstrip(b"\0")
    assert kdump.uts["release"].startswith("0.0-given-")
    assert running_guest.running()


@pytest.mark.parametrize(
    "data",
    [b"", bytes(4096), bytes(range(256)) * 16, b"hello world\n", b"OSRELEASE=\xff\xfe\n", b"x" * MIB],
    ids=["empty", "zeros", "binary", "prose", "not-ascii", "big"],
)  # fmt: skip
def test_a_file_of_garbage(data: bytes, running_guest: Guest, scratch: Path) -> None:
    (scratch / "text").write_bytes(data)
    refused(running_guest, scratch / "dump", "--vmcoreinfo", scratch / "text", code=REQUEST)
    assert running_guest.running()


def test_a_file_that_is_missing(running_guest: Guest, scratch: Path) -> None:
    line = refused(running_guest, scratch / "dump", "--vmcoreinfo", scratch / "none", code=SOURCE)
    assert "No such file" in line
    refused(running_guest, scratch / "dump", "--vmcoreinfo", scratch, code=SOURCE)
    assert running_guest.running()
