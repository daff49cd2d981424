"""volatility3's list of processes by vmdump's layer: what it reads of the ELF, whatever the guest comes in.

The symbol table is made from the dump itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.command import run
from oracles import judges

import vmdump
from live.guests import Guest

pytestmark = pytest.mark.timeout(900)
"""volatility reads all its own symbol tables once."""

BIN = Path(sys.executable).parent
Vol = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("volatility")
    (folder / "cache").mkdir()
    yield folder
    (folder / "elf").unlink(missing_ok=True)


@pytest.fixture
def stopped_guest(running_guest: Guest) -> Guest:
    """Paused by somebody else: it is the same for all readers."""
    running_guest.monitor.execute("stop")
    return running_guest


@pytest.fixture
def vol(folder: Path) -> Vol:
    judges.require("volatility3")

    def vol(source: object, *words: str) -> str:
        plugins = run("integrations", "volatility3").stdout.decode().strip()
        done = subprocess.run(
            [
                *(BIN / "vol", "-q", "--offline", "--cache-path", folder / "cache", "-s", folder / "isf"),
                *("-p", plugins, "-f", str(source), "-r", "csv", *(words or ("linux.pslist",))),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return vol


def test_processes_are_those_of_the_elf(stopped_guest: Guest, folder: Path, vol: Vol, scratch: Path) -> None:
    judges.require("pakunoda")
    vmdump.dump(f"qmp:{stopped_guest.qmp}", folder / "elf", format="elf")
    vmdump.dump(f"qmp:{stopped_guest.qmp}", scratch / "zstd.kdump", format="kdump-zstd")
    vmdump.dump(
        f"qmp:{stopped_guest.qmp}", scratch / "d31.kdump", format="kdump-zlib", layout="flattened", exclude=31
    )
    vmdump.convert(scratch / "zstd.kdump", scratch / "part", split=2)
    (folder / "isf" / "linux").mkdir(parents=True)
    subprocess.run(
        [BIN / "pakunoda", "extract", "-q", "-o", folder / "isf/linux/guest.json", folder / "elf"], check=True
    )
    truth = vol(folder / "elf")
    assert ",kthreadd," in truth
    assert len(truth.splitlines()) > 30
    sources = (
        scratch / "zstd.kdump",
        scratch / "d31.kdump",
        f"vmdump:{scratch}/part.1;{scratch}/part.2",
        f"vmdump:qmp:{stopped_guest.qmp}",
    )
    for source in sources:
        assert vol(source) == truth, source
    assert stopped_guest.monitor.status() == "paused"
