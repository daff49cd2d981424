"""The dump's block size: the guest's own page size where VMCOREINFO tells it, what QEMU takes where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracles import judges
from oracles.kdump import Kdump

import vmdump

START = 0x40000000


@pytest.mark.parametrize(
    ("arch", "told", "expected"),
    [
        ("aarch64", None, 65536),
        ("aarch64", 4096, 4096),
        ("aarch64", 16384, 16384),
        ("aarch64", 65536, 65536),
        ("ppc64", None, 65536),
        ("ppc64", 4096, 4096),
        ("ppc64le", None, 65536),
        ("loongarch64", None, 4096),
        ("loongarch64", 16384, 16384),
        ("mips64", 16384, 16384),
        ("x86_64", 4096, 4096),
        ("s390x", None, 4096),
    ],
)
def test_block_size(arch: str, told: int | None, expected: int, tmp_path: Path) -> None:
    memory = np.random.default_rng(1).integers(0, 9, 1 << 18, np.uint8)
    text = None if told is None else f"OSRELEASE=6.1.0\nPAGESIZE={told}\n".encode()
    source = vmdump.BlockSource([(START, memory)], arch=arch, vmcoreinfo=text)
    assert source.page_size == expected
    vmdump.dump(source, tmp_path / "kdump")
    dump = Kdump(tmp_path / "kdump").check()
    assert dump.block_size == expected
    assert dump.frame_ranges() == [(START // expected, (START + memory.size) // expected)]
    assert b"".join(page for _, page in dump.pages()) == memory.tobytes()
    if told is not None:
        told_by_reader = judges.libkdumpfile_attributes(tmp_path / "kdump", ["arch.page_size"])
        assert told_by_reader == {"arch.page_size": expected}
    read = judges.libkdumpfile_read(tmp_path / "kdump", [(START + 4096, 100000)])
    assert read == [memory[4096:104096].tobytes()]


@pytest.mark.parametrize(
    ("arch", "told", "expected"), [("x86_64", 65536, 4096), ("aarch64", 8192, 65536), ("s390x", 0, 4096)]
)
def test_a_page_size_that_the_architecture_has_not_is_not_believed(
    arch: str, told: int, expected: int
) -> None:
    text = f"OSRELEASE=6.1.0\nPAGESIZE={told}\n".encode()
    assert vmdump.BlockSource(bytes(1 << 16), arch=arch, vmcoreinfo=text).page_size == expected
