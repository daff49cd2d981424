"""A QEMU that cannot dump, where no real one says it on demand: texts that are cut, or of other machines."""

from __future__ import annotations

from typing import Any, cast

import pytest

from vmdump.arch import arch_by_name
from vmdump.errors import LayoutError, QmpError
from vmdump.sources.qemu.monitor import Monitor
from vmdump.sources.qemu.without_dump import describe_guest, has_no_dump, parse_memory, parse_registers

# Cut from what QEMU 7.2 says of -M malta and -M s390-ccw-virtio.
MTREE = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-000000000000ffff (prio 0, ram): no memory

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-0000000003ffffff (prio 0, ram): pc (1).ram KVM
  0000000010000000-0000000010ffffff (prio 0, i/o): pci0-mem @0000000010000000
  000000001e000000-000000001e3fffff (prio 0, romd): mips_malta.bios
  000000001e400000-000000001e7fffff (prio 0, nv-ram): nvdimm
  000000001e800000-000000001ebfffff (prio 0, ramd): vfio
  000000001fc00000-000000001fffffff (prio -1000, rom): bios.1fc @0000000000001000 KVM

FlatView #2
 AS "gt64120_pci", root: bus master container
 Root memory region: (none)
  No rendered FlatView

"""
ALONE = """FlatView #0
 AS "memory", root: system
 Root memory region: ram0
  0000000000000000-0000000003ffffff (prio 0, ram): ram0

"""
MIPS = """
CPU#0
pc=0xffffffffbfc00000 HI=0x0000000000000007 LO=0x0000000000000009 ds 10000098 0000000000000000 0
GPR00: r0 0000000000000000 at 0000000000000001 v0 0000000000000002 v1 ffffffffffffffff
GPR28: gp 000000000000001c sp 000000000000001d s8 000000000000001e ra 000000000000001f
CP0 Status  0x00400004 Cause   0x00000008 EPC    0x00000000000000ee
    Config0 0x8000c08a Config1 0xdea3519b LLAddr 0x0000000000000000

CPU#1
pc=0x0000000000000004 HI=0x0
"""


class Answers:
    """A monitor with prepared answers."""

    path = "qmp"

    def __init__(self, mtree: str = MTREE, registers: str = MIPS) -> None:
        self._texts = {"info mtree -f": mtree, "info registers -a": registers}

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> object:
        assert arguments is not None
        return self._texts[arguments["command-line"]].replace("\n", "\r\n")


def monitor(*args: str) -> Monitor:
    return cast("Monitor", Answers(*args))


REFUSAL = QmpError("dump-guest-memory: this feature or command is not currently supported")


def test_memory_is_ram_and_rom_of_the_system() -> None:
    assert parse_memory(MTREE) == [(0, 0x4000000), (0x1FC00000, 0x20000000)]
    assert parse_memory(ALONE) == [(0, 0x4000000)]
    assert parse_memory("") == parse_memory(MTREE.replace("system", "other")) == []


def test_registers_of_mips() -> None:
    first, second = parse_registers(arch_by_name("mips64"), MIPS)
    assert first == {
        "cp0_epc": 0xFFFFFFFFBFC00000,
        "hi": 7,
        "lo": 9,
        "cp0_status": 0x400004,
        "cp0_cause": 8,
        **{"r0": 0, "r1": 1, "r2": 2, "r3": (1 << 64) - 1},
        **{"r28": 28, "r29": 29, "r30": 30, "r31": 31},
    }
    assert second == {"cp0_epc": 4, "hi": 0}
    assert parse_registers(arch_by_name("riscv64"), MIPS) == []


def test_headers() -> None:
    headers = describe_guest(monitor(), "mips64el", REFUSAL)
    assert (headers.elf_class, headers.byteorder, headers.machine) == (64, "little", 8)
    assert headers.loads["p_paddr"].tolist() == [0, 0x1FC00000]
    assert headers.loads["p_memsz"].tolist() == [0x4000000, 0x400000]
    first, second = arch_by_name("mips64el").cpus(headers.notes)
    assert (first["r31"], first["cp0_badvaddr"], second["cp0_epc"]) == (31, 0, 4)


def test_only_one_refusal_is_taken_for_it() -> None:
    assert has_no_dump(REFUSAL)
    assert not has_no_dump(QmpError("dump-guest-memory: Dump not allowed during incoming migration."))


def test_an_architecture_that_is_not_known_keeps_the_refusal() -> None:
    with pytest.raises(QmpError) as caught:
        describe_guest(monitor(), "alpha", REFUSAL)
    assert caught.value is REFUSAL


@pytest.mark.parametrize(
    ("target", "answers", "says"),
    [
        ("mips", ("",), "info mtree -f shows no memory of the guest"),
        ("mips", (MTREE, ""), "info registers -a shows no registers of mips"),
        ("riscv64", (), "info registers -a shows no registers of riscv64"),
    ],
)
def test_answers_that_say_nothing(target: str, answers: tuple[str, ...], says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        describe_guest(monitor(*answers), target, REFUSAL)
