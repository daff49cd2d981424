"""VMCOREINFO in a guest's memory: the right one is found wherever it is, and nothing else passes for it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.direct_maps import DIRECT_MAPS, DirectMap
from oracles.elf import ElfCore
from oracles.elf_builder import note

import vmdump
from vmdump.arch import arch_by_name
from vmdump.errors import RequestError, SourceError
from vmdump.guest.blocks import BlockList, Memory
from vmdump.guest.buffers import BufferMemory
from vmdump.guest.guest import Guest
from vmdump.guest.linux import find_vmcoreinfo
from vmdump.guest.linux.choice import read_vmcoreinfo

PAGE = 4096
CHUNK = 4 << 20
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
UTS_FIELD = 65
NAME_OFFSET = 4


def search_vmcoreinfo(source: Guest, *options: Callable[[], bool]) -> bytes | None:
    """The text that is found, and is where it says that it was."""
    findings = find_vmcoreinfo.find_all(source, *options)
    found = None if findings is None else findings.chosen
    assert found is None or found.is_there(source)
    return found.text if found else None


@dataclass(frozen=True)
class Kernel:
    """A Linux in the guest: what it says of itself, and where it is."""

    release: str = "6.1.0-test"
    phys_base: int = 0
    uts: int = 40 * PAGE + 16
    """Guest-physical address of init_uts_ns."""
    extra: str = ""
    image: int = KERNEL_MAP
    """Virtual address at which the kernel's image is."""

    @property
    def text(self) -> bytes:
        symbol = self.uts + self.image - self.phys_base
        lines = (
            f"OSRELEASE={self.release}",
            f"PAGESIZE={PAGE}",
            f"SYMBOL(init_uts_ns)={symbol:x}",
            f"OFFSET(uts_namespace.name)={NAME_OFFSET}",
            f"NUMBER(phys_base)={self.phys_base}",
            self.extra,
        )
        return "\n".join(lines).encode() + b"\n"

    @property
    def names(self) -> bytes:
        fields = ("Linux", "node", self.release, "#1 SMP", "x86_64", "(none)")
        return b"".join(field.encode().ljust(UTS_FIELD, b"\0") for field in fields)

    def put_names(self, memory: np.ndarray, start: int = 0) -> None:
        put(memory, self.uts + NAME_OFFSET - start, self.names)


def put(memory: np.ndarray, offset: int, data: bytes) -> None:
    memory[offset : offset + len(data)] = np.frombuffer(data, np.uint8)


def as_note(text: bytes, byteorder: str = "little") -> bytes:
    return note(b"VMCOREINFO", 0, text, byteorder)


def guest(*blocks: tuple[int, np.ndarray], arch: str = "x86_64", **options: object) -> vmdump.BlockSource:
    return vmdump.BlockSource(list(blocks), arch=arch, **options)  # type: ignore[arg-type]


def zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


@pytest.mark.parametrize("form", ["text", "note"])
@pytest.mark.parametrize(
    "place",
    [0, PAGE, CHUNK - PAGE, CHUNK, 2 * CHUNK - PAGE],
    ids=["first page", "second page", "end of a piece", "begin of a piece", "last page"],
)
def test_both_forms_at_all_borders(form: str, place: int) -> None:
    memory = zeros(2 * CHUNK)
    kernel = Kernel()
    kernel.put_names(memory)
    put(memory, place, kernel.text if form == "text" else as_note(kernel.text))
    assert search_vmcoreinfo(guest((0, memory))) == kernel.text
    # Behind it lies something else than zeros.
    memory[place + len(as_note(kernel.text)) : place + PAGE] = 0xAA
    expected = kernel.text if form == "note" else None
    if expected:
        assert search_vmcoreinfo(guest((0, memory))) == expected


@pytest.mark.parametrize("form", ["text", "note"])
@given(st.integers(0, 200), st.integers(0, 31), st.integers(0, 2 * PAGE - 1))
@settings(max_examples=30)
def test_pages_are_counted_from_zero(form: str, place: int, shift: int, cut: int) -> None:
    """Blocks that begin and end within a page: what counts are guest-physical addresses."""
    kernel = Kernel()
    ram = zeros(256 * PAGE)
    put(ram, place * PAGE, kernel.text if form == "text" else as_note(kernel.text))
    kernel.put_names(ram)
    start = shift * 128
    source = guest((start, ram[start : len(ram) - cut]))
    whole = start <= place * PAGE
    overwritten = place == 40
    assert search_vmcoreinfo(source) == (kernel.text if whole and not overwritten else None)


@given(st.integers(1, 255), st.binary(max_size=64))
def test_nothing_off_a_page_s_start(offset: int, noise: bytes) -> None:
    memory = zeros(64 * PAGE)
    kernel = Kernel()
    kernel.put_names(memory)
    put(memory, 3 * PAGE + offset * 4, kernel.text)
    put(memory, 9 * PAGE, noise)
    assert search_vmcoreinfo(guest((0, memory))) is None


def test_no_memory_is_like_it() -> None:
    assert search_vmcoreinfo(guest((0, zeros(PAGE)))) is None
    assert search_vmcoreinfo(guest((100, zeros(PAGE - 1)), page_size=PAGE)) is None
    assert search_vmcoreinfo(guest((0, zeros(20)), page_size=PAGE)) is None


@pytest.mark.parametrize("stale_first", [True, False])
def test_stale_copies(stale_first: bool) -> None:
    """Kernels that were there before: their symbols lead elsewhere, or to another release."""
    right = Kernel()
    stale = (
        Kernel(phys_base=16 * PAGE, uts=56 * PAGE + 16),
        Kernel(release="5.10.0-old"),
        Kernel(phys_base=1 << 40, uts=(1 << 40) + PAGE),
        Kernel(phys_base=-(1 << 40), uts=PAGE),
    )
    memory = zeros(128 * PAGE)
    right.put_names(memory)
    places = range(64, 80, 2) if stale_first else range(100, 116, 2)
    for place, kernel in zip(places, [old for old in stale for _ in range(2)], strict=True):
        put(memory, place * PAGE, kernel.text if place % 4 else as_note(kernel.text))
    put(memory, 90 * PAGE, as_note(right.text))
    assert search_vmcoreinfo(guest((0, memory))) == right.text


def test_only_stale_copies() -> None:
    memory = zeros(128 * PAGE)
    put(memory, 7 * PAGE, Kernel().text)
    assert search_vmcoreinfo(guest((0, memory))) is None


def test_two_kernels_that_are_both_right() -> None:
    """A kernel and its kdump kernel, say: both are there, and the first one is taken, never a mixture."""
    memory = zeros(128 * PAGE)
    first, second = Kernel("6.1.0-one", uts=40 * PAGE), Kernel("6.1.0-two", uts=50 * PAGE)
    for place, kernel in ((9, second), (5, first)):
        kernel.put_names(memory)
        put(memory, place * PAGE, kernel.text)
    assert search_vmcoreinfo(guest((0, memory))) == first.text


@pytest.mark.parametrize(
    ("arch", "byteorder"), [("ppc64", "big"), ("aarch64", "little"), ("ppc64", "little")]
)
@pytest.mark.parametrize("form", ["text", "note"])
def test_architectures_that_cannot_check(arch: str, byteorder: str, form: str) -> None:
    """There a text counts if it is the only one, however often it is there."""
    memory = zeros(128 * PAGE)
    source = guest((0, memory), arch=arch, byteorder=byteorder, page_size=PAGE)
    text = Kernel().text
    for place in (20, 60):
        put(memory, place * PAGE, text if form == "text" else as_note(text, byteorder))
    assert search_vmcoreinfo(source) == text
    # The other form of the same text is no other text.
    put(memory, 70 * PAGE, as_note(text, byteorder))
    assert search_vmcoreinfo(source) == text
    put(memory, 80 * PAGE, Kernel("another").text)
    assert search_vmcoreinfo(source) is None


@pytest.mark.parametrize("place", DIRECT_MAPS, ids=lambda place: place.name)
def test_memory_that_is_mapped_directly(place: DirectMap) -> None:
    memory = zeros(128 * PAGE)
    stale, right = (Kernel(release, extra=place.lines, image=place.image) for release in ("5.10.0", "6.1.0"))
    source = guest((place.start, memory), arch=place.arch, page_size=PAGE)
    right.put_names(memory)
    put(memory, 10 * PAGE, stale.text)
    # What cannot be known for sure must not be rejected.
    assert search_vmcoreinfo(source) == (None if place.sure else stale.text)
    put(memory, 20 * PAGE, right.text)
    assert search_vmcoreinfo(source) == right.text
    assert source.with_vmcoreinfo(right.text).utsname.version == b"#1 SMP"
    assert source.with_vmcoreinfo(stale.text).utsname.version == b"unknown"


def test_a_text_that_can_be_checked_beats_one_that_cannot() -> None:
    memory = zeros(128 * PAGE)
    right = Kernel()
    right.put_names(memory)
    put(memory, 10 * PAGE, b"OSRELEASE=unchecked\nPAGESIZE=4096\n")
    put(memory, 20 * PAGE, right.text)
    assert search_vmcoreinfo(guest((0, memory))) == right.text


lies = st.sampled_from([0, 1, 3, 11, 12, 4095, 4096, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])


@given(lies, lies, st.integers(0, 63))
def test_lying_sizes(namesz: int, descsz: int, place: int) -> None:
    """A note's sizes are the guest's word: whatever they are, no error and no text that is none."""
    memory = zeros(64 * PAGE)
    text = Kernel().text
    put(memory, place * PAGE, struct.pack("<III", namesz, descsz, 0) + b"VMCOREINFO\0\0" + text)
    found = search_vmcoreinfo(guest((0, memory)))
    assert found is None  # its utsname is not there
    # Where nothing can be checked, the text itself is all there is.
    other = guest((0, memory), arch="aarch64", page_size=PAGE)
    found = search_vmcoreinfo(other)
    assert found is None or found.startswith(b"OSRELEASE=")


wild = st.sampled_from(
    ["-1", "0", "zz", "", "9" * 400, "0x" + "f" * 16, "-9223372036854775808", "1e9", "0b1"]
)


@given(wild, wild, wild, wild)
def test_lying_texts(page_size: str, symbol: str, offset: str, phys_base: str) -> None:
    text = (
        f"OSRELEASE=6.1.0\nPAGESIZE={page_size}\nSYMBOL(init_uts_ns)={symbol}\n"
        f"OFFSET(uts_namespace.name)={offset}\nNUMBER(phys_base)={phys_base}\nSYMBOL(_stext)=c0000000\n"
        f"KERNELOFFPHYS={phys_base}\nKERNELOFFSET={offset}\nIDENTITYBASE={page_size}\n"
    ).encode()
    memory = zeros(16 * PAGE)
    put(memory, 2 * PAGE, text)
    search_vmcoreinfo(guest((0, memory)))
    put(memory, 2 * PAGE, text.replace(b"PAGESIZE=", b"PAGESIZE=4096\nX="))
    search_vmcoreinfo(guest((0, memory)))
    for arch in ("arm", "s390x", "mips64"):
        search_vmcoreinfo(guest((0, memory), arch=arch))


@given(st.integers(0, 15), st.binary(min_size=1, max_size=PAGE - 16))
def test_any_bytes_behind_the_start(place: int, noise: bytes) -> None:
    memory = zeros(16 * PAGE)
    put(memory, place * PAGE, (b"OSRELEASE=" + noise)[:PAGE])
    put(
        memory,
        (place + 1) % 16 * PAGE,
        (struct.pack("<III", 11, len(noise), 0) + b"VMCOREINFO\0\0" + noise)[:PAGE],
    )
    search_vmcoreinfo(guest((0, memory)))


@pytest.mark.parametrize("pages_behind", [0, 1, 8, 40])
def test_long_text_near_the_end_of_a_block(pages_behind: int) -> None:
    """A note of 4 KiB of text, as long as the kernel's may be, reaches into the second page."""
    kernel = Kernel(extra="")
    kernel = Kernel(extra="X" * (4090 - len(kernel.text)))
    memory = zeros(64 * PAGE)
    kernel.put_names(memory)
    assert len(kernel.text) == 4090
    put(memory, (62 - pages_behind) * PAGE, as_note(kernel.text))
    assert search_vmcoreinfo(guest((0, memory))) == kernel.text


def test_page_that_is_the_end_of_the_block() -> None:
    memory = zeros(64 * PAGE)
    kernel = Kernel()
    kernel.put_names(memory)
    put(memory, 63 * PAGE, as_note(kernel.text))
    assert search_vmcoreinfo(guest((0, memory))) == kernel.text
    put(memory, 63 * PAGE, zeros(PAGE).tobytes())
    put(memory, 63 * PAGE, kernel.text)
    assert search_vmcoreinfo(guest((0, memory))) == kernel.text


def test_any_block_of_the_guest() -> None:
    kernel = Kernel(uts=(1 << 32) + 3 * PAGE, phys_base=1 << 32)
    low, high = zeros(8 * PAGE), zeros(8 * PAGE)
    kernel.put_names(high, 1 << 32)
    put(low, 7 * PAGE, as_note(kernel.text))
    assert search_vmcoreinfo(guest((0, low), (1 << 32, high))) == kernel.text


def test_many_blocks_that_all_begin_like_it() -> None:
    """Each block is looked up, and not looked for: a file may claim 262144, of which 4096 are tried."""
    memory, count, made = zeros(PAGE), 500, 0
    put(memory, 0, b"OSRELEASE=\n")

    def make(index: int) -> Memory:
        nonlocal made
        made += 1
        return BufferMemory(memory)

    starts = np.arange(count, dtype=np.uint64) * np.uint64(2 * PAGE)
    blocks = BlockList(starts, np.full(count, PAGE, np.uint64), make)
    assert search_vmcoreinfo(Guest(blocks, arch_by_name("x86_64"))) is None
    assert made < 10 * count


def test_it_can_be_cancelled() -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    memory = zeros(4 * CHUNK)
    kernel = Kernel()
    kernel.put_names(memory)
    put(memory, 3 * CHUNK, kernel.text)
    assert search_vmcoreinfo(guest((0, memory)), cancelled) is None
    assert asked == 2


def test_only_data_is_searched() -> None:
    """Holes are neither read nor searched, and a memory that fails says so."""

    class Sparse:
        copies = True
        size = 1 << 40

        def extents(self) -> Iterator[tuple[int, int]]:
            return iter([(1 << 39, (1 << 39) + PAGE)])

        def view(self, offset: int, length: int, scratch: np.ndarray) -> np.ndarray:
            assert (offset, length) == (1 << 39, PAGE)
            raise SourceError("gone")

    with pytest.raises(SourceError, match="gone"):
        search_vmcoreinfo(vmdump.BlockSource([(0, Sparse())]))


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0" * 100])
def test_check_of_what_the_user_gives(tail: bytes) -> None:
    assert read_vmcoreinfo(Kernel().text + tail) == Kernel().text


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0",
        b"PAGESIZE=4096\nOSRELEASE=6.1\n",
        b"OSRELEASE=6.1\n",
        b"OSRELEASE=6.1\nPAGESIZE=zz\n",
        b"OSRELEASE=6.1\nPAGESIZE=0\n",
        b"OSRELEASE=6.1\nPAGESIZE=1048576\n",
        b"OSRELEASE=6.1\nPAGESIZE=4096\n\0more",
        b"OSRELEASE=6.1\nPAGESIZE=4096\n" + b"X" * 70000,
        as_note(b"OSRELEASE=6.1\nPAGESIZE=4096\n"),
        b"\x7fELF" + bytes(100),
    ],
    ids=range(11),
)
def test_what_the_user_gives_is_none(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read_vmcoreinfo(text)
    assert caught.value.parameter == "vmcoreinfo"
    (tmp_path / "given").write_bytes(text)
    with pytest.raises(RequestError):
        vmdump.dump(zeros(PAGE), tmp_path / "out", vmcoreinfo=tmp_path / "given")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("as_file", [True, False])
def test_given_vmcoreinfo_takes_the_place_of_the_guest_s(as_file: bool, tmp_path: Path) -> None:
    mine, theirs = Kernel("6.6.6-mine").text, Kernel("1.1.1-theirs").text
    given: bytes | Path = mine
    if as_file:
        given = tmp_path / "given"
        given.write_bytes(mine + bytes(50))
    notes = note(b"CORE", 1, bytes(336)) + note(b"QEMU", 0, b"state")
    source = vmdump.BlockSource([(0, zeros(64 * PAGE))], notes=notes, vmcoreinfo=theirs)
    vmdump.dump(source, tmp_path / "out", format="elf", vmcoreinfo=given)
    found = [(entry.name, entry.desc) for entry in ElfCore(tmp_path / "out").note_list()]
    assert found == [(b"CORE", bytes(336)), (b"QEMU", b"state"), (b"VMCOREINFO", mine)]
    # The source itself is as it was.
    assert source.vmcoreinfo["OSRELEASE"] == "1.1.1-theirs"
    vmdump.dump(source, tmp_path / "out2", format="elf")
    assert theirs in [entry.desc for entry in ElfCore(tmp_path / "out2").note_list()]


def test_given_page_size_counts(tmp_path: Path) -> None:
    text = b"OSRELEASE=6.1\nPAGESIZE=65536\n"
    source = vmdump.BlockSource([(0, zeros(1 << 20))], arch="aarch64")
    report = vmdump.dump(source, tmp_path / "out", vmcoreinfo=text)
    assert report.zero_pages == 16


def test_text_that_is_no_longer_there() -> None:
    """After a reboot another kernel's text is in its place, and the old kernel's names still are."""
    memory = zeros(64 * PAGE)
    old, new = Kernel(), Kernel(phys_base=8 * PAGE, uts=50 * PAGE)
    old.put_names(memory)
    put(memory, 3 * PAGE, old.text)
    found = find_vmcoreinfo.findings_of(guest((0, memory))).chosen
    assert found is not None
    assert (found.address, found.text) == (3 * PAGE, old.text)
    put(memory, 3 * PAGE, new.text)
    new.put_names(memory)
    assert not found.is_there(guest((0, memory)))
    assert not found.is_there(guest((0, memory[: 2 * PAGE])))
    assert search_vmcoreinfo(guest((0, memory))) == new.text
