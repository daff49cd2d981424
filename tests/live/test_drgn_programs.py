"""drgn over vmdump, of real Linux guests: paused, running, and filtered."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import judges

import vmdump
import vmdump.drgn
from live.guests import Guest

MIB = 1 << 20
PAGE = 4096


@pytest.fixture(scope="module")
def elf(linux_guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """QEMU's own dump of the paused guest."""
    path = tmp_path_factory.mktemp("elf") / "core"
    linux_guest.monitor.dump(path)
    yield path
    path.unlink()


def symbols(program: Any) -> Any:
    """Give the program the kernel's symbols, without debugging information."""
    from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

    program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
    return program


@pytest.fixture(scope="module")
def own(elf: Path) -> Any:
    judges.require("drgn")
    import drgn

    program = drgn.Program()
    program.set_core_dump(elf)
    return symbols(program)


def test_paused_guest_is_what_drgn_reads_of_its_dump(linux_guest: Guest, own: Any) -> None:
    """As of one moment: held, so that drgn may remember what it has read."""
    import drgn

    with (
        vmdump.open_source(f"qmp:{linux_guest.qmp}") as source,
        source.held(pause=True, cancelled=lambda: False) as guest,
    ):
        program = symbols(vmdump.drgn.program(guest))
        assert program.platform == own.platform
        assert not program.flags & drgn.ProgramFlags.IS_LIVE
        assert program["UTS_RELEASE"].string_() == own["UTS_RELEASE"].string_()
        for name in ("init_task", "init_uts_ns", "linux_banner", "jiffies"):
            address = own.symbol(name).address
            assert program.symbol(name).address == address
            assert program.read(address, 256) == own.read(address, 256)
        assert program.read(program.symbol("linux_banner").address, 13) == b"Linux version"
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        for _ in range(200):
            address = rng.randrange(1 << 20, (2 << 30) - 9000)
            size = rng.choice((8, PAGE, 9000))
            assert program.read(address, size, True) == own.read(address, size, True), f"seed {seed}"


def test_running_guest(running_guest: Guest) -> None:
    judges.require("drgn")
    import drgn

    with vmdump.open_source(f"qmp:{running_guest.qmp}") as source:
        program = vmdump.drgn.program(source)
        assert program.flags & drgn.ProgramFlags.IS_LIVE
        names = int(source.vmcoreinfo["SYMBOL(init_uts_ns)"], 16)
        assert program["UTS_RELEASE"].string_() in program.read(names, 390)
        # What is read is as it is now, whatever was read before.
        places = range(MIB, 256 * MIB, MIB)
        before = [program.read(place, MIB, True) for place in places]
        running_guest.wait_tick()
        running_guest.wait_tick()
        assert any(program.read(place, MIB, True) != data for place, data in zip(places, before, strict=True))
    with pytest.raises(drgn.FaultError, match="closed"):
        program.read(MIB, 8, True)
    assert running_guest.running()


def test_socket_is_free_when_the_program_is_gone(running_guest: Guest) -> None:
    judges.require("drgn")
    for _ in range(2):
        assert vmdump.drgn.program(f"qmp:{running_guest.qmp}").read(MIB, 8, True) is not None


def test_filtered_dump(linux_guest: Guest, own: Any, scratch: Path) -> None:
    import drgn

    vmdump.dump(f"qmp:{linux_guest.qmp}", scratch / "d31", format="kdump-zstd", exclude=31)
    program = symbols(vmdump.drgn.program(scratch / "d31"))
    address = own.symbol("init_task").address
    assert program.read(address, 2 * PAGE) == own.read(address, 2 * PAGE)
    with vmdump.open(scratch / "d31") as dump:
        excluded = dump.excluded_pages(0, 1 << 18)
    assert excluded is not None
    assert excluded.any()
    for pfn in np.flatnonzero(excluded)[::5000].tolist():
        with pytest.raises(drgn.FaultError, match="was excluded when the dump was made") as caught:
            program.read(pfn * PAGE, 8, True)
        assert caught.value.address == pfn * PAGE
