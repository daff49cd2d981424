"""Raw memory of which nothing says where it is: refused, unless its kernel says that it is all at 0."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from helpers.raw_files import ranges, sparse

import vmdump
from vmdump.errors import LayoutError
from vmdump.guest.linux.find_vmcoreinfo import findings_of
from vmdump.sources.rawfile import RawSource

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
RELEASE = "6.1.0-raw"


def names(release: str = RELEASE) -> bytes:
    fields = ("Linux", "node", release, "#1 SMP", "machine", "(none)")
    return b"".join(field.encode().ljust(65, b"\0") for field in fields)


def vmcoreinfo(uts: int, root: int = 0, **numbers: int) -> bytes:
    lines = [f"OSRELEASE={RELEASE}", "PAGESIZE=4096", f"SYMBOL(init_uts_ns)={uts:x}"]
    lines += ["OFFSET(uts_namespace.name)=0", f"SYMBOL(swapper_pg_dir)={root:x}"]
    return "\n".join([*lines, *(f"NUMBER({name})={value}" for name, value in numbers.items()), ""]).encode()


def linux(
    low: int,
    size: int,
    kernel: int,
    mapped: Sequence[tuple[int, int]] | None = None,
    tables_end: int | None = None,
) -> dict[int, bytes]:
    """An x86_64 Linux whose image is at `kernel`, and whose tables map `mapped`; its pages by file offset.

    The tables below the top one are at the end of memory, where Linux makes them, or end at `tables_end`.
    """
    end = 4 * GIB + size - low if low < size else size
    layout = [(0, min(low, size))] + ([(4 * GIB, end)] if low < size else [])

    def offset(address: int) -> int:
        return address if address < low else address - 4 * GIB + low

    tables: dict[int, bytearray] = {}
    free = tables_end or end

    def table() -> int:
        nonlocal free
        free -= PAGE
        tables[free] = bytearray(PAGE)
        return free

    root, uts, text = kernel, kernel + PAGE, kernel + 2 * PAGE
    tables[root] = bytearray(PAGE)
    pud, device = table(), table()
    struct.pack_into("<Q", tables[root], 273 * 8, pud | 3)
    # As ioremap() has it, more than the guest's memory: 64 GiB of a device.
    struct.pack_into("<Q", tables[root], 402 * 8, device | 3)
    for index in range(64):
        struct.pack_into("<Q", tables[device], index * 8, (1 << 45) + index * GIB | 0x83)
    middle: dict[int, int] = {}
    for begin, until in mapped if mapped is not None else layout:
        for address in range(begin, until, 2 * MIB):
            if address // GIB not in middle:
                middle[address // GIB] = table()
                struct.pack_into("<Q", tables[pud], address // GIB * 8, middle[address // GIB] | 3)
            struct.pack_into(
                "<Q", tables[middle[address // GIB]], address % GIB // (2 * MIB) * 8, address | 0x83
            )
    pages = {offset(address): bytes(data) for address, data in tables.items()}
    moved = kernel - 16 * MIB
    told = vmcoreinfo(uts - moved + KERNEL_MAP, root - moved + KERNEL_MAP, phys_base=moved)
    return {**pages, offset(uts): names(), offset(text): told}


def refusal(path: Path, options: str = "") -> LayoutError:
    with pytest.raises(LayoutError) as caught:
        vmdump.open_source(f"raw:{path}{options}")
    with pytest.raises(LayoutError) as again:
        vmdump.open(f"raw:{path}{options}")
    assert str(again.value) == str(caught.value)
    assert str(again.value).startswith(f"{path}: ")
    assert "\n" not in str(again.value)
    return caught.value


@pytest.mark.parametrize(
    ("size", "layouts"),
    [
        (2816 * MIB, ("machine=q35", "machine=pc")),
        (3584 * MIB, ("machine=q35", "machine=pc")),
        (4608 * MIB, ("machine=q35", "machine=pc")),
    ],
)
@pytest.mark.parametrize("arch", ["x86_64", "i386"])
def test_large_file_of_which_nothing_is_known(
    arch: str, size: int, layouts: tuple[str, ...], run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    path = sparse(tmp_path / "ram", size)
    error = refusal(path, f"?arch={arch}")
    assert (error.layouts, error.confirmed) == (layouts, "")
    assert "0x0-0x80000000,0x100000000-" in str(error)
    assert "base=0" in str(error)
    done = run_vmdump("dump", f"raw:{path}?arch={arch}", tmp_path / "dump")
    assert (done.returncode, done.stderr.count(b"\n"), (tmp_path / "dump").exists()) == (4, 1, False)
    for options in (f"base=0&arch={arch}", f"arch={arch}&blocks=0-{size}"):
        with vmdump.open_source(f"raw:{path}?{options}") as guest:
            assert ranges(guest) == [(0, size)]
    with RawSource(path, base=0, arch=arch) as guest:
        assert ranges(guest) == [(0, size)]


@pytest.mark.parametrize(
    ("arch", "size"), [("x86_64", 2815 * MIB), ("i386", 2815 * MIB), ("s390x", 8 * GIB), ("ppc64", 8 * GIB)]
)
def test_memory_without_a_hole_is_opened_unread(
    arch: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sparse(tmp_path / "ram", size, {0: b"data"})
    monkeypatch.setattr("vmdump.guest.files.GuestFile.read_into", None)
    with vmdump.open_source(f"raw:{path}?arch={arch}") as guest:
        assert ranges(guest) == [(0, size)]


@pytest.mark.parametrize("kernel", [32 * MIB, 4 * GIB + 512 * MIB], ids=["low", "high"])
@pytest.mark.parametrize(
    ("low", "size", "confirmed"),
    [
        (2 * GIB, 4608 * MIB, "machine=q35"),
        (3 * GIB, 4608 * MIB, "machine=pc"),
        (2 * GIB, 3 * GIB, "machine=q35"),
        (0xD0000000, 5 * GIB, "blocks=0x0-0xd0000000,0x100000000-0x170000000"),
        (512 * MIB, 3 * GIB, "blocks=0x0-0x20000000,0x100000000-0x1a0000000"),
    ],
)
def test_kernel_says_where_the_memory_is(
    low: int, size: int, confirmed: str, kernel: int, tmp_path: Path
) -> None:
    path = sparse(tmp_path / "ram", size, linux(low, size, kernel))
    error = refusal(path)
    assert error.confirmed == error.layouts[0] == confirmed
    assert f"raw:{path}?{confirmed}" in str(error)
    with vmdump.open_source(f"raw:{path}?{confirmed}") as guest:
        assert ranges(guest) == [(0, low), (4 * GIB, 4 * GIB + size - low)]


def test_layout_that_fits_best_is_confirmed(tmp_path: Path) -> None:
    """Of a microvm of 3 GiB and 2 MiB, at 0 all but 2 MiB would be in place."""
    size = 3074 * MIB
    path = sparse(tmp_path / "ram", size, linux(3 * GIB, size, 32 * MIB, tables_end=64 * MIB))
    assert refusal(path).confirmed == "machine=microvm"


def test_kernel_says_that_there_is_no_hole(tmp_path: Path) -> None:
    for size in (3 * GIB, 5 * GIB):
        path = sparse(tmp_path / "ram", size, linux(size, size, 32 * MIB))
        with vmdump.open_source(f"raw:{path}") as guest:
            assert ranges(guest) == [(0, size)]


@pytest.mark.parametrize("mapped", [[], [(0, GIB)], [(0, 6 * GIB)]], ids=["none", "mem=1G", "the hole, too"])
def test_tables_that_fit_nothing_confirm_nothing(mapped: list[tuple[int, int]], tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", 4608 * MIB, linux(2 * GIB, 4608 * MIB, 32 * MIB, mapped))
    assert refusal(path).confirmed == ""


def test_kernel_of_a_small_file_is_asked_once_it_is_found(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    pages = linux(128 * MIB, 256 * MIB, 32 * MIB)
    text = max(pages.values(), key=lambda data: data.count(b"SYMBOL"))
    path = sparse(tmp_path / "ram", 256 * MIB, pages)
    confirmed = "blocks=0x0-0x8000000,0x100000000-0x108000000"
    for opening in (vmdump.open_source, vmdump.open):
        with opening(f"raw:{path}") as guest, pytest.raises(LayoutError) as caught:
            guest.with_vmcoreinfo(text)
        assert caught.value.confirmed == confirmed
        with opening(f"raw:{path}?base=0") as guest:
            guest.with_vmcoreinfo(text)
    done = run_vmdump("dmesg", f"raw:{path}")
    assert done.returncode == 4
    assert confirmed.encode() in done.stderr
    flat = sparse(tmp_path / "flat", 256 * MIB, linux(256 * MIB, 256 * MIB, 32 * MIB))
    with vmdump.open_source(f"raw:{flat}") as guest:
        guest.with_vmcoreinfo(text)


@pytest.mark.parametrize(
    ("arch", "base", "numbers", "confirmed"),
    [
        ("aarch64", GIB, {"PHYS_OFFSET": GIB}, "machine=virt"),
        ("aarch64", 1 << 40, {"PHYS_OFFSET": 1 << 40}, "base=0x10000000000"),
        ("aarch64", 0, {"PHYS_OFFSET": 0}, ""),
        ("riscv64", 2 * GIB, {"phys_ram_base": 2 * GIB}, "machine=virt"),
    ],
)
def test_kernel_of_another_architecture(
    arch: str, base: int, numbers: dict[str, int], confirmed: str, tmp_path: Path
) -> None:
    offset = "kimage_voffset" if arch == "aarch64" else "va_kernel_pa_offset"
    virtual = 0xFFFF_8000_0800_0000
    text = vmcoreinfo(virtual, **{offset: virtual - base - MIB}, **numbers)
    path = sparse(tmp_path / "ram", 64 * MIB, {MIB: names(), 4 * MIB: text})
    if confirmed:
        error = refusal(path, f"?arch={arch}")
        assert error.confirmed == confirmed
        assert f"{path}?{confirmed}" in str(error)
    for options in (f"arch={arch}&{confirmed}" if confirmed else f"arch={arch}", f"arch={arch}&base={base}"):
        with vmdump.open_source(f"raw:{path}?{options}") as guest:
            assert ranges(guest) == [(base, base + 64 * MIB)]
            assert guest.with_vmcoreinfo(text).utsname.release == RELEASE.encode()


@pytest.mark.parametrize(("arch", "machine"), [("loongarch64", "virt"), ("mips64el", "malta")])
def test_kernel_below_the_hole_does_not_say_that_there_is_none(
    arch: str, machine: str, tmp_path: Path
) -> None:
    virtual = {"loongarch64": 0x9000_0000_0000_0000, "mips64el": 0xFFFF_FFFF_8000_0000}[arch]
    pages = {MIB: names(), 4 * MIB: vmcoreinfo(virtual + MIB)}
    error = refusal(sparse(tmp_path / "ram", 1025 * MIB, pages), f"?arch={arch}")
    assert (error.layouts, error.confirmed) == ((f"machine={machine}",), "")
    small = sparse(tmp_path / "small", 256 * MIB, pages)
    with vmdump.open_source(f"raw:{small}?arch={arch}") as guest:
        assert ranges(guest) == [(0, 256 * MIB)]


def test_memory_full_of_kernels(tmp_path: Path) -> None:
    text = vmcoreinfo(KERNEL_MAP + (5 << 30), phys_base=0)
    pages = {number * PAGE: text + b"N=%d\n" % number for number in range(2000)}
    path = sparse(tmp_path / "ram", 3 * GIB, pages)
    assert refusal(path).confirmed == ""
    with vmdump.open_source(f"raw:{sparse(tmp_path / 'small', 2 * GIB, pages)}") as guest:
        assert findings_of(guest).chosen is None


MAPPER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 1 << 20, mmap.MAP_SHARED)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("words", "confirmed"),
    [
        (
            ["-machine", "pc-q35-6.2,accel=kvm,memory-backend=pc.ram", "-m", "size=3145728k,slots=16"],
            "pc-q35-6.2",
        ),
        (["-M", "q35", "-m", "3072"], "q35"),
        (["--machine", "accel=kvm,type=q35", "-m", "3G,maxmem=8G"], "q35"),
        (
            ["-machine", "q35", "-machine", "max-ram-below-4g=1G", "-m", "3G"],
            "q35&max_ram_below_4g=0x40000000",
        ),
        (["-m", "3G"], None),  # QEMU's default is a pc, which has all of it at 0
        (["-machine", "q35", "-m", "6G"], ""),  # a part of its memory
        (["-machine", "xenpv", "-m", "3G"], ""),
        (["-machine", "q35"], ""),
    ],
)
def test_command_line_of_the_qemu_that_has_it(
    words: list[str], confirmed: str | None, tmp_path: Path
) -> None:
    path = sparse(tmp_path / "ram", 3 * GIB)
    command = ["/usr/libexec/qemu-kvm", "-c", MAPPER, str(path), *words]
    with subprocess.Popen(
        command, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        if confirmed is None:
            with vmdump.open_source(f"raw:{path}") as guest:
                assert ranges(guest) == [(0, 3 * GIB)]
        else:
            error = refusal(path)
            assert error.confirmed == (f"machine={confirmed}" if confirmed else "")
            assert f"process {process.pid} " in str(error)
        process.communicate()
    assert refusal(path).confirmed == ""
