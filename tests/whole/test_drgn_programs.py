"""drgn over vmdump: the same as drgn's own reading of an ELF dump, of whatever the guest comes in."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.kernel_tables import KERNELS
from oracles import judges
from oracles.elf_builder import Load, build_elf
from oracles.kdump import Kdump
from oracles.lime_builder import build_avml, build_lime
from oracles.page_tables import Tables

import vmdump
import vmdump.drgn
from vmdump.errors import CapabilityError, FormatError, SourceError

GUEST = "synthetic:32M?seed=4&fill=0.3"
MIB = 1 << 20
PAGE = 4096
KINDS = ("lime", "avml", "elf without notes", "kdump", "flattened", "split", "raw", "buffers", "synthetic")


@pytest.fixture(scope="module")
def ranges() -> list[tuple[int, bytes]]:
    with vmdump.open_source(GUEST) as guest:
        return [(block.start, guest.read(block.start, block.size)) for block in guest.blocks]


@pytest.fixture(scope="module")
def sources(ranges: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same guest as whatever vmdump takes."""
    folder = tmp_path_factory.mktemp("drgn")
    (folder / "lime").write_bytes(build_lime(ranges))
    (folder / "avml").write_bytes(build_avml(ranges))
    (folder / "elf").write_bytes(build_elf([Load(*piece) for piece in ranges]))
    vmdump.dump(GUEST, folder / "kdump", format="kdump-zlib")
    vmdump.dump(GUEST, folder / "flattened", format="kdump-zlib", layout="flattened")
    vmdump.convert(folder / "kdump", folder / "part", split=3)
    with (folder / "raw").open("wb") as file:
        for start, data in ranges[:2]:
            file.seek(start)
            file.write(data)
    return {
        "lime": folder / "lime",
        "avml": folder / "avml",
        "elf without notes": folder / "elf",
        "kdump": folder / "kdump",
        "flattened": folder / "flattened",
        "split": [folder / f"part.{number}" for number in (1, 2, 3)],
        "raw": f"raw:{folder / 'raw'}",
        "buffers": ranges,
        "synthetic": GUEST,
    }


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """drgn's own program."""
    judges.require("drgn")
    import drgn

    path = tmp_path_factory.mktemp("own") / "elf"
    vmdump.dump(GUEST, path, format="elf")
    program = drgn.Program()
    program.set_core_dump(path)
    return program


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_drgn_reads_itself(
    kind: str, sources: dict[str, Any], own: Any, ranges: list[tuple[int, bytes]]
) -> None:
    program = vmdump.drgn.program(sources[kind])
    assert program.platform == own.platform
    assert program["UTS_RELEASE"].string_() == b"6.1.0-vmdump-synthetic"
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for start, data in ranges[:2]:
        for _ in range(50):
            offset = rng.randrange(len(data) - 9000)
            size = rng.choice((1, 8, PAGE, 9000))
            read = program.read(start + offset, size, physical=True)
            assert read == data[offset : offset + size], f"seed {seed}"
            assert read == own.read(start + offset, size, physical=True), f"seed {seed}"
    with vmdump.open_source(GUEST) as guest:
        names = int(guest.vmcoreinfo["SYMBOL(init_uts_ns)"], 16)
    assert program.read(names, 390) == own.read(names, 390)
    assert b"6.1.0-vmdump-synthetic" in program.read(names, 390)


def fault(program: Any, address: int, size: int = 8, *, physical: bool = True) -> str:
    import drgn

    with pytest.raises(drgn.FaultError) as caught:
        program.read(address, size, physical=physical)
    return str(caught.value)


def test_memory_that_is_not_there(tmp_path: Path) -> None:
    judges.require("drgn")
    memory = np.ones(4 * PAGE, np.uint8)
    program = vmdump.drgn.program([(0, memory[: 2 * PAGE + 100]), (8 * PAGE, memory)])
    assert program.read(2 * PAGE, 100, physical=True) == bytes([1]) * 100
    assert "no memory at guest-physical address 0x2064" in fault(program, 2 * PAGE, 101)
    assert "no memory at guest-physical address 0x5000" in fault(program, 5 * PAGE)
    assert "0xc000" in fault(program, 12 * PAGE)
    # Neither VMCOREINFO nor a vCPU.
    assert "where the page tables of this x86_64 guest are" in fault(program, 0, physical=False)


def test_damaged_pages(tmp_path: Path) -> None:
    judges.require("drgn")
    vmdump.dump(GUEST, tmp_path / "kdump", format="kdump-zlib")
    with vmdump.open(tmp_path / "kdump") as dump:
        kinds = dump.page_kinds(0, 256 + 7936)
    pfn = int(np.flatnonzero(kinds == vmdump.PageKind.ZLIB)[0])
    kdump = Kdump(tmp_path / "kdump")
    offset = int(kdump.descriptors["offset"][np.flatnonzero(kdump.pfns == pfn)[0]])
    with (tmp_path / "kdump").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 16)
    said = fault(vmdump.drgn.program(tmp_path / "kdump"), pfn * PAGE)
    assert said.startswith(f"{tmp_path}/kdump: ")
    assert f"{pfn:#x}" in said


def test_what_is_named_is_closed_with_the_program(sources: dict[str, Any]) -> None:
    judges.require("drgn")

    def descriptors() -> list[str]:
        gc.collect()
        return [
            link
            for name in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{name}")
            for link in (os.readlink(f"/proc/self/fd/{name}"),)
            if link == str(sources["kdump"])
        ]

    program = vmdump.drgn.program(sources["kdump"])
    assert len(descriptors()) == 1
    taken = program["UTS_RELEASE"]
    del program
    assert len(descriptors()) == 1
    assert taken.string_() == b"6.1.0-vmdump-synthetic"
    assert taken.prog_.read(PAGE, 8, physical=True) is not None
    del taken
    assert not descriptors()


def test_what_is_open_stays_the_callers(sources: dict[str, Any]) -> None:
    judges.require("drgn")
    with vmdump.open(sources["kdump"]) as dump:
        program = vmdump.drgn.program(dump)
        program.read(PAGE, 8, physical=True)
        del program
        gc.collect()
        assert dump.read(PAGE, 8)
        program = vmdump.drgn.program(dump)
    assert fault(program, PAGE).startswith(f"{sources['kdump']}: the source is closed")


# What drgn does not walk itself, or not without debugging information.
WALKED = [name for name, kernel in KERNELS.items() if kernel.arch not in ("aarch64", "s390x", "x86_64")]


@pytest.mark.parametrize("name", WALKED)
def test_page_tables_that_drgn_does_not_walk(name: str) -> None:
    judges.require("drgn")
    kernel, seed = KERNELS[name], random.randrange(1 << 32)
    shape, rng = kernel.shape, random.Random(seed)
    memory = bytearray(32 * MIB) + rng.randbytes(MIB) * 4
    tables = Tables(memory, shape, 2 * MIB)
    level = shape.shifts.index(kernel.page)
    mapped = []
    for _ in range(20):
        virtual = rng.randrange(1 << (shape.bits - 1), 1 << shape.bits) >> kernel.page << kernel.page
        if kernel.low is not None:
            virtual |= kernel.low
        physical = 32 * MIB + (rng.randrange(4 * MIB) >> kernel.page << kernel.page)
        if tables.map(virtual, physical, level):
            mapped.append((shape.address(virtual), physical))
    assert mapped, f"seed {seed}"
    text = b"OSRELEASE=6.12.0\n" + kernel.vmcoreinfo(tables.root)
    with vmdump.BlockSource(memory, arch=kernel.arch, vmcoreinfo=text, page_size=PAGE) as guest:
        program = vmdump.drgn.program(guest)
        assert program.platform.flags.value == (guest.arch.elf_class == 64) + 2 * (
            guest.byteorder == "little"
        )
        for virtual, physical in mapped:
            assert program.read(virtual, 64) == memory[physical : physical + 64], f"seed {seed}, {virtual:#x}"


def test_errors(tmp_path: Path) -> None:
    judges.require("drgn")
    with pytest.raises(SourceError, match="No such file"):
        vmdump.drgn.program(tmp_path / "nothing")
    lines = b"OSRELEASE=6.1.0\nPAGESIZE=nothing\n"
    with (
        vmdump.BlockSource(bytes(PAGE), vmcoreinfo=lines) as guest,
        pytest.raises(FormatError, match="VMCOREINFO: drgn does not take it: "),
    ):
        vmdump.drgn.program(guest)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("None", "drgn cannot be imported"),
        ("types.SimpleNamespace(Program=object)", "drgn is older than 0.3"),
    ],
)
def test_without_drgn(module: str, said: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, types; sys.modules['drgn'] = {module}\n"
            "import vmdump\n"
            "try: vmdump.drgn.program('synthetic:1M')\n"
            "except vmdump.errors.CapabilityError as error: print(error)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(said)
    assert done.stdout.endswith("pip install 'vmdump[drgn]'\n")
    assert issubclass(CapabilityError, NotImplementedError)


def test_it_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, vmdump; assert 'drgn' not in sys.modules; vmdump.drgn; assert 'drgn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    everything: dict[str, object] = {}
    exec("from vmdump import *", everything)
    assert "drgn" not in everything
