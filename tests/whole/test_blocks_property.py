"""Any guest to kdump: blocks, page sizes, architectures, codecs and layouts drawn at random."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.elf_builder import note
from oracles.flattened import Flattened
from oracles.kdump import CODEC_FLAGS, Kdump

import vmdump
from vmdump.errors import LayoutError

TEXT = b"kernel: [    0.000000] Linux version 6.1.0 (gcc-12) #1 SMP\n"


class Machine(NamedTuple):
    """What the dump of a guest without and with VMCOREINFO is expected to look like."""

    arch: str
    bits: int
    byteorder: str
    packing: str
    packing_with_vmcoreinfo: str


# 32-bit guests without VMCOREINFO are packed: readers take 0/0 at the packed place for that form.
MACHINES = (
    Machine("x86_64", 64, "little", "64-bit", "64-bit"),
    Machine("aarch64", 64, "little", "64-bit", "64-bit"),
    Machine("ppc64", 64, "big", "64-bit", "64-bit"),
    Machine("i386", 32, "little", "packed", "packed"),
    Machine("arm", 32, "little", "packed", "padded"),
    Machine("ppc", 32, "big", "packed", "padded"),
)


class Guest(NamedTuple):
    """One drawn guest: (first pfn, memory) per block, and its page size."""

    machine: Machine
    page_size: int
    blocks: list[tuple[int, np.ndarray]]
    notes: bytes
    vmcoreinfo: bytes | None


def fill_page(kind: str, page_size: int, seed: int) -> bytes:
    if kind == "zero":
        return bytes(page_size)
    if kind == "first byte":
        return b"\x01" + bytes(page_size - 1)
    if kind == "last byte":
        return bytes(page_size - 1) + b"\x80"
    if kind == "text":
        return (b"%d " % seed + TEXT * (page_size // len(TEXT) + 1))[:page_size]
    return np.random.default_rng(seed).integers(0, 256, page_size, np.uint8).tobytes()


@st.composite
def guests(draw: st.DrawFn) -> Guest:
    machine = draw(st.sampled_from(MACHINES))
    page_size = draw(st.sampled_from([4096, 8192, 16384, 65536]))
    # Above 4 GiB a 32-bit guest becomes a 64-bit dump, which is another test.
    last_pfn = ((1 << 32) if machine.bits == 32 else (1 << 36)) // page_size - 200
    pfn = draw(st.sampled_from([0, 1, 7, 8, 0xFFF8, last_pfn]) | st.integers(0, last_pfn))
    pfn = min(pfn, last_pfn)
    kinds = st.sampled_from(["zero", "first byte", "last byte", "text", "random"])
    blocks = []
    for gap, pages in draw(
        st.lists(
            st.tuples(st.integers(0, 20), st.lists(kinds, min_size=1, max_size=6)), min_size=1, max_size=5
        )
    ):
        pfn += gap
        data = b"".join(fill_page(kind, page_size, pfn + i) for i, kind in enumerate(pages))
        blocks.append((pfn, np.frombuffer(data, np.uint8)))
        pfn += len(pages)
    notes = b"".join(
        note(b"CORE", 1, bytes([cpu]) * size, machine.byteorder)
        for cpu, size in enumerate(draw(st.lists(st.integers(100, 5000), max_size=3)))
    )
    text = f"OSRELEASE=6.1.0\nPAGESIZE={page_size}\n".encode()
    return Guest(machine, page_size, blocks, notes, draw(st.sampled_from([None, text])))


def dump_guest(guest: Guest, path: Path, codec: str, layout: str, threads: int) -> Path:
    source = vmdump.BlockSource(
        [(pfn * guest.page_size, memory) for pfn, memory in guest.blocks],
        arch=guest.machine.arch,
        page_size=guest.page_size,
        notes=guest.notes,
        vmcoreinfo=guest.vmcoreinfo,
    )
    vmdump.dump(source, path, format=f"kdump-{codec}", layout=layout, threads=threads)
    return path


@settings(max_examples=150)
@given(
    guest=guests(),
    codec=st.sampled_from(sorted(CODEC_FLAGS)),
    layout=st.sampled_from(["standard", "flattened"]),
    threads=st.integers(1, 3),
)
def test_any_guest_to_kdump(guest: Guest, codec: str, layout: str, threads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = dump_guest(guest, Path(folder) / "dump", codec, layout, threads)
        if layout == "flattened":
            Flattened(path).check().rearrange(Path(folder) / "standard")
            path = Path(folder) / "standard"
        kdump = Kdump(path).check()

        machine, size = guest.machine, guest.page_size
        assert (kdump.form.bits, kdump.form.byteorder) == (machine.bits, machine.byteorder)
        assert kdump.packing == (machine.packing_with_vmcoreinfo if guest.vmcoreinfo else machine.packing)
        assert kdump.block_size == size
        assert kdump.codec_flag == CODEC_FLAGS[codec]
        pages = {
            pfn + index: memory[index * size : (index + 1) * size].tobytes()
            for pfn, memory in guest.blocks
            for index in range(len(memory) // size)
        }
        assert kdump.max_mapnr == max(pages) + 1
        assert dict(kdump.pages()) == pages
        shared = kdump.descriptors["offset"] == kdump.data_offset
        assert shared.tolist() == [not any(pages[pfn]) for pfn in kdump.pfns.tolist()]
        assert kdump.notes.startswith(guest.notes)
        assert kdump.vmcoreinfo == (guest.vmcoreinfo or b"")
        assert kdump.notes[len(guest.notes) :].count(kdump.vmcoreinfo) >= 1
        assert kdump.header["nr_cpus"] == max(1, guest.notes.count(b"CORE\0"))
        assert kdump.uts["machine"] not in ("", "Unknown")


@pytest.mark.parametrize("codec", sorted(CODEC_FLAGS))
def test_pages_that_do_not_shrink_stay_plain(codec: str, tmp_path: Path) -> None:
    memory = np.random.default_rng(1).integers(0, 256, 64 << 12, np.uint8)
    memory[: 32 << 12] = np.frombuffer(fill_page("text", 32 << 12, 0), np.uint8)
    kdump = Kdump(
        dump_guest(Guest(MACHINES[0], 4096, [(5, memory)], b"", None), tmp_path / "d", codec, "auto", 2)
    )
    kdump.check()
    assert (kdump.descriptors["flags"][:32] == CODEC_FLAGS[codec]).all()
    assert (kdump.descriptors["size"][:32] < 1024).all()
    assert (kdump.descriptors["flags"][32:] == 0).all()
    assert b"".join(page for _, page in kdump.pages()) == memory.tobytes()


@pytest.mark.parametrize("arch", ["i386", "arm", "ppc"])
def test_32bit_guest_with_memory_above_4_gib_has_64bit_headers(arch: str, tmp_path: Path) -> None:
    memory = np.ones(4096, np.uint8)
    vmdump.dump(
        vmdump.BlockSource([(0, memory), (1 << 32, memory)], arch=arch, page_size=4096), tmp_path / "dump"
    )
    kdump = Kdump(tmp_path / "dump").check()
    assert (kdump.form.bits, kdump.frame_ranges()) == (64, [(0, 1), (1 << 20, (1 << 20) + 1)])


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [(0, b"")],
        [(4096, b"a" * 4096), (0, b"b" * 4096)],
        [(0, b"a" * 8192), (4096, b"b" * 4096)],
        [(0, b"a" * 4096), (0, b"b" * 4096)],
        [((1 << 64) - 4096, b"a" * 8192)],
    ],
    ids=["none", "empty", "unsorted", "overlapping", "twice", "beyond 64 bits"],
)
def test_wrong_block_lists(blocks: list[tuple[int, bytes]], tmp_path: Path) -> None:
    with pytest.raises(LayoutError):
        vmdump.dump(blocks, tmp_path / "dump")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("page_size", [0, 2048, 5000, 131072])
def test_wrong_page_sizes(page_size: int) -> None:
    with pytest.raises((LayoutError, ValueError)):
        vmdump.BlockSource([(0, bytes(1 << 17))], page_size=page_size)


def test_strided_memory_is_refused() -> None:
    with pytest.raises(LayoutError):
        vmdump.BlockSource([(0, np.zeros((4096, 2), np.uint8)[:, 0])])


@given(order=st.permutations(range(4)))
def test_only_the_sorted_order_of_blocks_is_taken(order: list[int]) -> None:
    blocks = [(index * 8192, bytes(4096)) for index in order]
    if order == sorted(order):
        assert len(vmdump.BlockSource(blocks).blocks) == 4
    else:
        with pytest.raises(LayoutError):
            vmdump.BlockSource(blocks)
