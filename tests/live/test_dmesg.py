"""``vmdump dmesg`` of a real kernel, beside ``makedumpfile --dump-dmesg``."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.kdump import Kdump

import vmdump
from live.conftest import MakeGuest
from live.guests import Guest


def check(guest: Guest, scratch: Path, run_vmdump: RunVmdump, name: str) -> bytes:
    guest.monitor.execute("stop")
    vmdump.dump(f"qmp:{guest.qmp}", scratch / "dump", format=name)
    expected = judges.makedumpfile_dmesg(scratch / "dump", scratch / "log")
    assert expected.count(b"\n") > 100
    done = run_vmdump("dmesg", scratch / "dump")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    return expected


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_dmesg_equals_makedumpfiles(
    name: str, linux_guest: Guest, scratch: Path, run_vmdump: RunVmdump
) -> None:
    log = check(linux_guest, scratch, run_vmdump, name)
    assert b"Linux version" in log.split(b"\n")[0]
    live = run_vmdump("dmesg", f"qmp:{linux_guest.qmp}")
    assert live.stdout == log


def test_a_log_outside_the_kernels_image(make_guest: MakeGuest, scratch: Path, run_vmdump: RunVmdump) -> None:
    """A larger log is allocated, and only page tables tell where it is."""
    log = check(make_guest("512M", append="log_buf_len=8M umlaut=\xe4"), scratch, run_vmdump, "kdump-zlib")
    assert rb"umlaut=\xc3\xa4" in log


def test_a_dump_that_makedumpfile_filtered(linux_guest: Guest, scratch: Path, run_vmdump: RunVmdump) -> None:
    linux_guest.monitor.execute("stop")
    vmdump.dump(f"qmp:{linux_guest.qmp}", scratch / "elf", format="elf")
    judges.makedumpfile_filter(scratch / "elf", scratch / "dump", "-c", "-d", "31")
    oracle = Kdump(scratch / "dump")
    had = sum(byte.bit_count() for byte in oracle.bitmap1)
    found = vmdump.info(scratch / "dump")
    assert found.maker == "vmdump, or makedumpfile"
    assert found.kinds["excluded"] == had - len(oracle.pfns) > 0
    assert sum(found.kinds.values()) == found.pages == had
    compared = vmdump.verify(scratch / "dump", against=scratch / "elf").comparison
    assert compared is not None
    assert compared.different_pages == 0
    assert compared.excluded_pages == found.kinds["excluded"]
    assert compared.bytes_compared == len(oracle.pfns) * 4096
    log = judges.makedumpfile_dmesg(scratch / "dump", scratch / "log")
    assert run_vmdump("dmesg", scratch / "dump").stdout == log
    live = run_vmdump("verify", scratch / "dump", "--against", f"qmp:{linux_guest.qmp}")
    assert live.returncode == 0, live.stderr


def test_virtual_memory_is_what_drgn_reads(linux_guest: Guest, scratch: Path, run_vmdump: RunVmdump) -> None:
    judges.require("drgn")
    import drgn

    linux_guest.monitor.execute("stop")
    vmdump.dump(f"qmp:{linux_guest.qmp}", scratch / "dump")
    program = drgn.Program()
    program.set_core_dump(scratch / "dump")
    with vmdump.open(scratch / "dump") as dump:
        symbols = [dump.vmcoreinfo.symbol(name) for name in ("init_uts_ns", "prb", "mem_section", "_stext")]
    for address in symbols:
        assert address is not None
        done = run_vmdump("read", scratch / "dump", hex(address), 9000, "--virtual")
        assert done.stdout == program.read(address, 9000), done.stderr
