"""Page tables that the test writes into a stopped machine: QEMU's monitor says where addresses are.

QEMU walks no tables on LoongArch and MIPS, whose processors leave that to the system, and those of ppc64 only
for a system that it has started: `kernels.py` beside this file has real ones.
"""

from __future__ import annotations

import mmap
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from helpers.kernel_tables import KERNELS, Kernel
from oracles import judges
from oracles.page_tables import Tables

import vmdump
from live.machines import KINDS, MIB, GdbStub, Kind, Machine
from vmdump.errors import TranslationError

PAGES = 60
ADDRESSES = 300


class Placed:
    """A part of the file behind the memory, by guest-physical addresses."""

    def __init__(self, data: mmap.mmap, base: int) -> None:
        self._data = data
        self._base = base

    def __len__(self) -> int:
        return self._base + len(self._data)

    def _moved(self, part: slice) -> slice:
        return slice(part.start - self._base, part.stop - self._base)

    def __getitem__(self, part: slice) -> bytes:
        return self._data[self._moved(part)]

    def __setitem__(self, part: slice, data: bytes) -> None:
        self._data[self._moved(part)] = data


def numbers(stub: GdbStub) -> dict[str, int]:
    """Give the numbers of all registers by name, as the stub describes them."""

    def document(name: str) -> str:
        text, answer = "", "m"
        while answer.startswith("m"):
            answer = stub.ask(f"qXfer:features:read:{name}:{len(text):x},7f0")
            text += answer[1:]
        return text

    found: dict[str, int] = {}
    following = 0
    for part in re.findall(r'xi:include href="([^"]+)"', document("target.xml")):
        for row in re.findall(r"<reg ([^>]*)>", document(part)):
            told = re.search(r'regnum="(\d+)"', row)
            number = int(told[1]) if told else following
            name = re.search(r'name="([^"]+)"', row)
            assert name
            found[name[1]] = number
            following = number + 1
    return found


_CODE = 0x1000
_ARM_BASE = 1 << 30


def run_code(stub: GdbStub, machine: Machine, code: list[int], registers: dict[str, int]) -> None:
    """Run instructions one by one, with a value in each of some registers."""
    known = numbers(stub)
    memory = machine.ram.open("r+b")
    with memory, mmap.mmap(memory.fileno(), 0) as data:
        data[_CODE : _CODE + 4 * len(code)] = b"".join(word.to_bytes(4, "little") for word in code)
    for name, value in {**registers, "pc": _ARM_BASE + _CODE}.items():
        size = len(stub.read(known[name]))
        stub.write(known[name], (value % (1 << 8 * size)).to_bytes(size, "little"))
    for _ in code:
        assert stub.ask("s").startswith("T05")


def enter_s390x(stub: GdbStub, machine: Machine, kernel: Kernel, root: int) -> None:
    known = numbers(stub)
    kind = {32: 0, 31: 0, 42: 1, 53: 2, 64: 3}[kernel.shape.bits]
    # The tables of control register 1 are on.
    stub.write(known["cr1"], (root | kind << 2 | 3).to_bytes(8, "big"))
    stub.write(known["pswm"], (1 << 58 | 3 << 31).to_bytes(8, "big"))


def enter_riscv(stub: GdbStub, machine: Machine, kernel: Kernel, root: int) -> None:
    known = numbers(stub)
    mode = {32: 1 << 31, 39: 8 << 60, 48: 9 << 60, 57: 10 << 60}[kernel.shape.bits]
    # Without a rule that allows all of it, memory is for machine mode only.
    rules = {"pmpaddr0": (1 << (32 if kernel.shape.bits == 32 else 54)) - 1, "pmpcfg0": 0x1F}
    if kernel.shape.bits > 32:
        rules["menvcfg"] = 1 << 62  # what kind of memory a page is may be in its entry
    for name, value in {**rules, "satp": mode | root >> 12, "priv": 1}.items():
        stub.write(known[name], value.to_bytes(len(stub.read(known[name])), "little"))


def enter_aarch64(stub: GdbStub, machine: Machine, kernel: Kernel, root: int) -> None:
    bits, granule = kernel.shape.bits, {12: 2, 14: 1, 16: 3}[kernel.page]
    # DS (bit 59) is for 52 bits with small granules; addresses of tables have their bits 51:48 at 5:2.
    wide = bits > 48 and kernel.page < 16
    tcr = 64 - bits << 16 | granule << 30 | (6 << 32 if kernel.widest == 52 else 5 << 32) | wide << 59
    registers = {"x0": root, "x1": tcr, "x2": 0x30D00801}
    # msr ttbr1_el1, x0; msr tcr_el1, x1; msr sctlr_el1, x2
    run_code(stub, machine, [0xD5182020, 0xD5182041, 0xD5181002], registers)


def enter_arm(stub: GdbStub, machine: Machine, kernel: Kernel, root: int) -> None:
    long = kernel.widest == 40
    registers = {"r0": root, "r1": 1 << 31 if long else 0, "r2": 0x00C50801, "r3": 0xFFFFFFFF}
    # TTBCR, TTBR0, DACR and SCTLR
    run_code(stub, machine, [0xEE021F50, 0xEE020F10, 0xEE033F10, 0xEE012F10], registers)


@dataclass(frozen=True)
class Walk:
    kind: Kind
    kernel: Kernel
    enter: Callable[[GdbStub, Machine, Kernel, int], None]
    base: int
    # What is above is a fault.
    reach: int = 1 << 32


def walks() -> Iterator[tuple[str, Walk]]:
    riscv = {**KINDS, "riscv64": replace(KINDS["riscv64"], options=("-cpu", "rv64,svpbmt=on"))}
    for name, kernel in KERNELS.items():
        if kernel.arch == "s390x":
            # QEMU has no large pages there; drgn judges them.
            kernel = replace(kernel, large=())
            yield (
                name,
                Walk(replace(KINDS["s390x"], options=("-cpu", "max")), kernel, enter_s390x, 0, 64 * MIB),
            )
        elif kernel.arch.startswith("riscv"):
            yield name, Walk(riscv[kernel.arch], kernel, enter_riscv, 1 << 31)
        elif kernel.arch == "aarch64" and not (kernel.page == 14 and kernel.shape.bits == 36):
            yield (
                name,
                Walk(
                    replace(KINDS["aarch64"], options=("-cpu", "max")),
                    kernel,
                    enter_aarch64,
                    _ARM_BASE,
                    1 << 44,
                ),
            )
        elif kernel.arch == "arm":
            yield name, Walk(KINDS["arm"], kernel, enter_arm, _ARM_BASE)


WALKS = dict(walks())


@pytest.mark.parametrize("name", WALKS)
def test_translation_is_the_monitors(name: str) -> None:
    walk = WALKS[name]
    kernel, shape = walk.kernel, walk.kernel.shape
    judges.require(f"qemu-system-{walk.kind.arch}")
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    with (
        Machine(walk.kind, 1, seed=seed) as machine,
        machine.ram.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as data,
    ):
        tables = Tables(Placed(data, walk.base), shape, walk.base + 2 * MIB)
        levels = [level for level, shift in enumerate(shape.shifts) if shift in (kernel.page, *kernel.large)]
        pages = []
        for _ in range(PAGES):
            level = rng.choice(levels)
            size = 1 << shape.shifts[level]
            virtual = rng.randrange(1 << (shape.bits - 1), 1 << shape.bits) // size * size
            physical = rng.randrange(walk.reach) // size * size
            if tables.map(virtual, physical, level):
                pages.append((virtual, size))
        stub = machine.gdb()
        walk.enter(stub, machine, kernel, tables.root)
        stub.close()
        chosen = []
        for _ in range(ADDRESSES):
            virtual, size = rng.choice(pages)
            chosen.append(virtual + rng.choice([0, size - 1, rng.randrange(size), size, -1]))
        addresses = [shape.address(at % (1 << shape.bits)) for at in chosen]
        theirs = [gva2gpa(machine, address) for address in addresses]
        cpus = None
        if kernel.arch == "s390x":
            with vmdump.open_source(f"qmp:{machine.qmp}") as live:
                cpus = live.cpus
                assert translated(live, addresses[0], 0) == theirs[0], f"seed {seed}"
        text = kernel.vmcoreinfo(tables.root - walk.base if kernel.arch == "arm" else tables.root)
        memory = bytes(data)
    with vmdump.BlockSource(
        [(walk.base, memory)], arch=kernel.arch, vmcoreinfo=text, page_size=4096, cpus=cpus
    ) as guest:
        mine = [translated(guest, address, None if cpus is None else 0) for address in addresses]
    wrong = [row for row in zip(map(hex, addresses), mine, theirs, strict=True) if row[1] != row[2]]
    assert not wrong, f"seed {seed}"
    assert sum(at is not None for at in theirs) > ADDRESSES // 3


def gva2gpa(machine: Machine, address: int) -> int | None:
    text = machine.human(f"gva2gpa {address:#x}")
    found = re.fullmatch(r"gpa: (?:0x)?([0-9a-f]+)\s*", text)
    assert found or "Unmapped" in text, text
    return int(found[1], 16) if found else None


def translated(guest: vmdump.Source, address: int, cpu: int | None) -> int | None:
    try:
        return guest.translate(address, cpu=cpu)
    except TranslationError:
        return None
