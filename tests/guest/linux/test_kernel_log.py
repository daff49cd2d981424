"""The kernel's log from memory images that are built here, byte by byte, as old and new kernels have it.

tests/live/test_dmesg.py compares the log of a real kernel with what makedumpfile makes of it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.direct_maps import DIRECT_MAPS, DirectMap
from oracles.log_ring import (
    BASE,
    COMMITTED,
    DESCS,
    FINALIZED,
    IDS,
    INFOS,
    LINES,
    PRB,
    RESERVED,
    REUSABLE,
    RING,
    SIZE,
    TEXT,
    Ring,
)

import vmdump
from vmdump import errors
from vmdump.guest.linux.kernel_log import read_log

OLD_LINES = "OSRELEASE=2.6.32\nPAGESIZE=4096\n"


def guest(memory: bytearray, lines: str) -> vmdump.BlockSource:
    return vmdump.BlockSource(np.frombuffer(memory, np.uint8), vmcoreinfo=lines.encode())


def source_of(ring: Ring, /, **changes: int) -> vmdump.BlockSource:
    return guest(ring.finish(**changes), LINES)


def lines_of(source: vmdump.Source) -> list[str]:
    return [record.line() for record in read_log(source)]


def test_records_and_their_lines() -> None:
    ring = Ring()
    ring.add(b"Linux version 6.1", level=5)
    ring.add(b"first\nsecond", time=123_456_789_000, caller=42)
    ring.add(b"tab\there \x1b[31m \xc3\xa4", time=99_999_999_999_999, caller=0x80000003, level=0)
    records = list(read_log(source_of(ring)))
    assert records == [
        vmdump.LogRecord(b"Linux version 6.1", 0, 5, 1, "T0"),
        vmdump.LogRecord(b"first\nsecond", 123_456_789_000, 6, 1, "T42"),
        vmdump.LogRecord(b"tab\there \x1b[31m \xc3\xa4", 99_999_999_999_999, 0, 1, "C3"),
    ]
    assert [record.line() for record in records] == [
        "[    0.000000] Linux version 6.1",
        "[  123.456789] first\n               second",
        "[99999.999999] tab\there \\x1b[31m \\xc3\\xa4",
    ]


def test_records_that_are_not_there_are_passed_over() -> None:
    ring = Ring()
    ring.add(b"one")
    ring.add(b"being written", state=RESERVED)
    ring.add(b"two", state=COMMITTED)
    ring.add(b"free again", state=REUSABLE)
    ring.add(b"without text")
    ring.describe(3, 3, state=FINALIZED)  # what the kernel writes where there is no text
    ring.add(b"cut", said=500)
    ring.add(b"overwritten")
    struct.pack_into("<Q", ring.memory, DESCS + 24 * 6, 2 * IDS + 6 + 16)  # of the next round
    ring.add(b"last")
    assert lines_of(source_of(ring)) == [
        "[    0.000000] one",
        "[    0.000000] two",
        "[    0.000000] cut" + "\\x00" * 5,
        "[    0.000000] last",
    ]


@given(
    texts=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=40),
    first=st.sampled_from([0, 5, IDS - 3, IDS - 16]),
)
def test_any_ring(texts: Sequence[bytes], first: int) -> None:
    """Numbers go round at 2^62, texts at the end of their ring; 16 texts of up to 72 bytes fit into 2 KiB."""
    ring = Ring(4, 11, first)
    for index, text in enumerate(texts):
        ring.add(text, time=index)
    length = min(len(texts), 16)
    ring.tail = (ring.head - length + 1) % IDS
    found = list(read_log(source_of(ring)))
    assert [record.text for record in found] == list(texts)[-length:]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"count_bits": 32}, errors.FormatError),
        ({"count_bits": 0xFFFFFFFF}, errors.FormatError),
        ({"size_bits": 63}, errors.FormatError),
        ({"tail": 3, "head": 2}, errors.FormatError),
        ({"head": IDS - 1}, errors.FormatError),
        ({"ring": 0}, errors.VmdumpError),
        ({"descs": (1 << 64) - 8}, errors.VmdumpError),
        ({"infos": BASE + SIZE - 4}, errors.VmdumpError),
        ({"text": 0x1234}, errors.VmdumpError),
    ],
)
def test_hostile_rings(changes: dict[str, int], kind: type[Exception]) -> None:
    ring = Ring()
    ring.add(b"text")
    with pytest.raises(kind):
        list(read_log(source_of(ring, **changes)))


@given(data=st.data())
def test_garbage_is_an_error_or_a_log(data: st.DataObject) -> None:
    ring = Ring()
    for _ in range(8):
        ring.add(b"some text", time=1)
    source = source_of(ring)
    places = st.one_of(
        st.integers(RING, RING + 88), st.integers(DESCS, DESCS + 200), st.integers(INFOS, INFOS + 700)
    )
    for _ in range(data.draw(st.integers(1, 6))):
        ring.memory[data.draw(places)] = data.draw(st.integers(0, 255))
    try:
        assert len(list(read_log(source))) <= 16
    except errors.VmdumpError as error:
        assert "\n" not in str(error)


def old_log(struct_name: str, buffer: bytes, first: int, end: int, **symbols: int) -> vmdump.BlockSource:
    """struct printk_log: u64 ts_nsec; u16 len, text_len, dict_len; u8 facility, flags:5 and level:3."""
    memory = bytearray(SIZE)
    memory[TEXT : TEXT + len(buffer)] = buffer
    struct.pack_into("<QIII", memory, PRB, BASE + TEXT, len(buffer), first, end)
    lines = "OSRELEASE=4.19.0\nPAGESIZE=4096\nNUMBER(phys_base)=0\n"
    names = {"log_buf": 0, "log_buf_len": 8, "log_first_idx": 12, "log_next_idx": 16} | symbols
    lines += "".join(f"SYMBOL({name})={BASE + PRB + at:x}\n" for name, at in names.items())
    lines += f"SIZE({struct_name})=16\nOFFSET({struct_name}.ts_nsec)=0\nOFFSET({struct_name}.len)=8\n"
    return guest(memory, lines + f"OFFSET({struct_name}.text_len)=10\n")


def old_record(text: bytes, time: int, level: int = 6, dictionary: bytes = b"") -> bytes:
    length = -(-(16 + len(text) + len(dictionary)) // 4) * 4
    head = struct.pack("<QHHHBB", time, length, len(text), len(dictionary), 0, level << 5 | 6)
    return (head + text + dictionary).ljust(length, b"\0")


@pytest.mark.parametrize("name", ["printk_log", "log"])
def test_old_records_that_go_round(name: str) -> None:
    front = old_record(b"third\nline", 3_000_001_000) + old_record(b"fourth", 4 << 32, level=3)
    back = old_record(b"first", 1_000, dictionary=b"SUBSYSTEM=pci") + old_record(b"second", 2_000)
    gap, size = 64, 512
    first = size - gap - len(back)
    buffer = front.ljust(first, b"\xee") + back + bytes(gap)
    records = list(read_log(old_log(name, buffer, first, len(front))))
    assert [(record.text, record.timestamp, record.level) for record in records] == [
        (b"first", 1_000, 6),
        (b"second", 2_000, 6),
        (b"third\nline", 3_000_001_000, 6),
        (b"fourth", 4 << 32, 3),
    ]
    assert records[2].line() == "[    3.000001] third\n               line"
    assert lines_of(old_log(name, buffer, 100, 100)) == []


@pytest.mark.parametrize(
    ("buffer", "first", "end"),
    [
        (bytes(256), 0, 64),  # no length at all: it would stay there
        (bytes(256), 64, 32),  # back to the start, and there it would stay
        (old_record(b"round", 1) * 10, 0, 5),  # never meets its end
        (old_record(b"long", 1)[:8] + b"\xff\xff" + bytes(100), 0, 64),
        (old_record(b"short", 1), 0xFFFFFFFF, 0),
        (struct.pack("<QHHHBB", 1, 16, 500, 0, 0, 0) + bytes(200), 0, 100),
    ],
)
def test_hostile_old_records(buffer: bytes, first: int, end: int) -> None:
    with pytest.raises(errors.FormatError, match="log"):
        list(read_log(old_log("printk_log", buffer, first, end)))


def characters(text: bytes, size: int) -> vmdump.BlockSource:
    """The ring of characters before 3.5; log_end counts all that were ever written."""
    memory = bytearray(SIZE)
    for position in range(max(len(text) - size, 0), len(text)):
        memory[TEXT + position % size] = text[position]
    struct.pack_into("<QII", memory, PRB, BASE + TEXT, size, len(text))
    names = {"log_buf": 0, "log_buf_len": 8, "log_end": 12, "logged_chars": 12}
    lines = "OSRELEASE=2.6.32\nPAGESIZE=4096\nNUMBER(phys_base)=0\n"
    return guest(
        memory, lines + "".join(f"SYMBOL({name})={BASE + PRB + at:x}\n" for name, at in names.items())
    )


@pytest.mark.parametrize("size", [64, 4096, 1 << 14])
def test_characters(size: int) -> None:
    text = b"".join(b"<%d>[%5d.000000] message %d\n" % (n % 8, n, n) for n in range(200)) + b"<4>half a li"
    expected = text[-size:].decode().split("\n")
    assert lines_of(characters(text, size)) == expected
    last = list(read_log(characters(text, size)))[-1]
    assert (last.level, last.facility, last.text, last.timestamp) == (4, 0, b"half a li", None)


@pytest.mark.parametrize("place", DIRECT_MAPS, ids=lambda place: place.name)
def test_memory_that_is_mapped_directly(place: DirectMap) -> None:
    text = b"<6>first\n<3>second\n"
    memory = bytearray(SIZE)
    memory[TEXT : TEXT + len(text)] = text
    head = ">" if place.byteorder == "big" else "<"
    pointer = "I" if place.word == 4 else "Q"
    struct.pack_into(f"{head}{pointer}II", memory, PRB, place.data + TEXT, 256, len(text))
    names = {"log_buf": 0, "log_buf_len": place.word, "log_end": place.word + 4}
    lines = "".join(f"SYMBOL({name})={place.image + PRB + at:x}\n" for name, at in names.items())
    source = vmdump.BlockSource(
        [(place.start, np.frombuffer(memory, np.uint8))],
        arch=place.arch,
        page_size=4096,
        vmcoreinfo=(OLD_LINES + place.lines + lines).encode(),
    )
    assert lines_of(source) == ["<6>first", "<3>second"]


@pytest.mark.parametrize(
    ("arch", "address", "lines"),
    [
        ("arm", 0xC0001000, ""),
        ("arm", 0xB0301000, "SYMBOL(_stext)=b0300000\n"),  # a 3G_OPT kernel, or one that runs in flash memory
        ("arm", 0xBF001000, "SYMBOL(_stext)=c0300000\n"),  # a module
        ("i386", 0xB1001000, "SYMBOL(_stext)=b1000000\n"),
        ("ppc", 0x1000, "SYMBOL(_stext)=c0000000\n"),
        ("ppc64", 0xD000000000001000, ""),
        ("mips", 0xC0001000, ""),
        ("mips64", 0xFFFFFFFFC0001000, ""),
        ("mips64", 0xC000000000001000, ""),
        ("loongarch64", 0xFFFF800000001000, ""),
        ("s390x", 0x1000, "KERNELOFFPHYS=0\nKERNELOFFSET=3ffe0000000\n"),
        ("riscv32", 0xC0001000, ""),
    ],
)
def test_memory_that_takes_page_tables(arch: str, address: int, lines: str) -> None:
    lines = f"{OLD_LINES}{lines}SYMBOL(log_end)={address:x}\nSYMBOL(log_buf_len)={address:x}\n"
    memory = np.full(SIZE, 1, np.uint8)
    source = vmdump.BlockSource(memory, arch=arch, page_size=4096, vmcoreinfo=lines.encode())
    assert source.kernel_to_phys(address) is None
    with pytest.raises(errors.CapabilityError, match=f"{arch} "):
        list(read_log(source))


def test_characters_without_a_newline_are_not_gathered() -> None:
    found = list(read_log(characters(b"x" * 500_000, 1 << 19)))
    assert sum(len(record.text) for record in found) == 500_000
    assert max(len(record.text) for record in found) < 100_000


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("OSRELEASE=6.1.0\nPAGESIZE=4096\n", "it does not tell where the log is"),
        ("OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(prb)=0\n", r"printk_ringbuffer.desc_ring|page table"),
        (LINES.replace("SIZE(prb_desc)=24", "SIZE(prb_desc)=0"), "prb_desc"),
        (LINES.replace("count_bits)=0", "count_bits)=-1"), "count_bits"),
    ],
)
def test_vmcoreinfo_that_says_too_little(lines: str, what: str) -> None:
    ring = Ring()
    ring.add(b"text")
    ring.finish()
    with pytest.raises(errors.CapabilityError, match=what):
        list(read_log(guest(ring.memory, lines)))
