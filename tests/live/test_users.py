"""Who may dump a guest: root, its own user, and nobody else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracles import judges
from oracles.elf import ElfCore

from live.conftest import MakeGuest, as_nobody
from live.dumping import MIB, refused, succeeds, until
from live.guests import Guest

DENIED, SOURCE = 14, 3
NOBODY = 65534


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which everybody may create files."""
    folder = Path("/tmp") / f"vmdump-test-users-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def open_to_all(guest: Guest) -> None:
    guest.folder.chmod(0o755)
    guest.qmp.chmod(0o666)


@pytest.mark.parametrize("share", ["file", "private"])
def test_another_users_guest(
    share: str, bare_guest: MakeGuest, nobody: tuple[str, ...], open_folder: Path
) -> None:
    """It may connect, and no more: QEMU is root's."""
    guest = bare_guest("64M", share=share)
    open_to_all(guest)
    guest.monitor.execute("cont")
    line = refused(guest, open_folder / "dump", code=DENIED, python=nobody, cwd="/")
    assert "CAP_SYS_PTRACE" in line
    assert "as root" in line
    assert "Permission denied" in line
    assert guest.running()
    assert not list(open_folder.iterdir())
    # It has taken nothing that root would miss.
    succeeds(guest, open_folder / "dump")


def test_another_users_socket(bare_guest: MakeGuest, nobody: tuple[str, ...], open_folder: Path) -> None:
    guest = bare_guest("64M")
    guest.folder.chmod(0o755)
    guest.qmp.chmod(0o600)
    line = refused(guest, open_folder / "dump", code=SOURCE, python=nobody, cwd="/")
    assert "Permission denied" in line
    assert "another user" in line


@pytest.fixture(params=["file", "memfd", "private"])
def nobodys_guest(request: pytest.FixtureRequest, open_folder: Path) -> Iterator[str]:
    """A running QEMU of the same unprivileged user, without any helper of root's: its socket."""
    judges.require("qemu-system-x86_64")
    backend = {
        "file": f"memory-backend-file,share=on,mem-path={open_folder / 'ram'}",
        "memfd": "memory-backend-memfd,share=on",
        "private": "memory-backend-ram",
    }[request.param]
    path = open_folder / "qmp"
    words = [
        *("setpriv", "--pdeathsig", "KILL"),
        *as_nobody("qemu-system-x86_64", "-accel", "tcg", "-machine", "q35,memory-backend=ram0", "-m", "64M"),
        *("-object", f"{backend},id=ram0,size=64M", "-nodefaults", "-display", "none"),
        *(
            "-qmp",
            f"unix:{path},server=on,wait=off",
            "-device",
            f"loader,file={open_folder / 'blob'},addr=0x1000000",
        ),
    ]
    (open_folder / "blob").write_bytes(os.urandom(MIB))
    (open_folder / "blob").chmod(0o644)
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd="/", stderr=subprocess.PIPE) as qemu:
        try:
            until(lambda: path.exists() or qemu.poll() is not None, "the socket is there")
            yield f"qmp:{path}"
        finally:
            qemu.kill()


def test_ones_own_guest_needs_no_root(nobodys_guest: str, nobody: tuple[str, ...], open_folder: Path) -> None:
    """Same user, no capability: enough where Yama does not forbid it."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists() and scope.read_text().strip() != "0":
        line = refused(nobodys_guest, open_folder / "dump", code=DENIED, python=nobody, cwd="/")
        assert str(scope) in line
        return
    report = succeeds(nobodys_guest, open_folder / "dump", "-f", "elf", python=nobody, cwd="/")
    assert report["paused_seconds"] > 0
    core = ElfCore(open_folder / "dump").check_vmdump_layout()
    assert core.read(0x1000000, MIB) == (open_folder / "blob").read_bytes()
    assert (open_folder / "dump").stat().st_uid == NOBODY
