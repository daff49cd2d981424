"""The table of kinds: each line has its readers, and only what a file needs is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from oracles.elf_builder import Load, build_elf
from oracles.lime_builder import build_lime

import vmdump
from vmdump.errors import FormatError
from vmdump.formats.foreign import read_kind
from vmdump.readers.dump import Dump
from vmdump.readers.registry import KINDS, Kind

MEMORY = bytes(range(256)) * 64


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_line_names_its_readers(kind: Kind) -> None:
    for damaged in (False, True):
        reader = kind.load(damaged=damaged)
        assert isinstance(reader, type)
        assert issubclass(reader, Dump)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_raw_memory_is_none_of_what_is_read(kind: Kind) -> None:
    for signature in kind.signatures:
        assert read_kind(signature) is not None


def test_a_refusal_names_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\1\2\3" * 4096)
    with pytest.raises(FormatError, match=r"not a dump \(ELF core, kdump, LiME or AVML\)"):
        vmdump.open(path)


@pytest.mark.parametrize(
    ("name", "data"), [("elf", build_elf([Load(0x1000, MEMORY)])), ("lime", build_lime([(0x1000, MEMORY)]))]
)
def test_other_readers_are_not_loaded(name: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(data)
    code = "import sys, vmdump; vmdump.open(sys.argv[1]).close(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"vmdump.readers.{name}" in loaded
    others = {f"vmdump.readers.{other}" for other in ("elf", "kdump", "lime", "avml", "foreign", "salvage")}
    assert loaded & others == {f"vmdump.readers.{name}"}
