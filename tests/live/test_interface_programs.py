"""Programs that people have for QMP: qemu.qmp's shell and drgn, at QEMU's own monitor and at `serve`."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from oracles import judges
from oracles.elf import ElfCore

from live.doors import Door
from live.raw_client import PATIENCE

BIN = Path(sys.executable).parent
RANGES = [(1 << 20, 64), (16 << 20, 4096), ((96 << 20) - 64, 64)]


def shell(door: Door, *lines: str, human: bool = False) -> str:
    """What ``qmp-shell`` says to lines on its standard input; it waits for each answer."""
    options = ["--hmp"] if human else []
    done = subprocess.run(
        [str(BIN / "qmp-shell"), *options, str(door.path)],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_qmp_shell(door: Door, tmp_path: Path) -> None:
    said = shell(
        door,
        f"dump-guest-memory paging=false protocol=file:{tmp_path}/elf",
        "query-dump",
        f"dump-guest-memory paging=false protocol=file:{tmp_path}/kdump format=kdump-zlib",
        f"dump-guest-memory paging=true protocol=file:{tmp_path}/no format=kdump-zlib",
        "dump-guest-memory",
        "query-dump-guest-memory-capability",
    )
    _, empty, query, *others, capability, _ = said.split("(QEMU) ")
    assert empty.strip() == '{"return": {}}'
    assert '"status": "completed"' in query
    assert others[0].strip() == '{"return": {}}'
    assert "kdump-compressed format doesn't support paging or filter" in others[1]
    assert "Parameter 'paging' is missing" in others[2]
    assert '"elf", "kdump-zlib"' in capability
    assert (tmp_path / "elf").read_bytes()[:4] == b"\x7fELF"
    assert (tmp_path / "kdump").read_bytes()[:12] == b"makedumpfile"
    assert not (tmp_path / "no").exists()


def test_qmp_shell_as_human_monitor(door: Door, tmp_path: Path) -> None:
    said = shell(door, f"dump-guest-memory -z {tmp_path}/dump", "info dump", "info status", human=True)
    assert "Status: completed" in said
    assert "VM status: paused" in said
    assert (tmp_path / "dump").read_bytes()[:12] == b"makedumpfile"


def test_qmp_shell_on_a_terminal(door: Door, tmp_path: Path) -> None:
    """Line by line, as somebody types."""
    main, side = pty.openpty()
    command = [str(BIN / "qmp-shell"), str(door.path)]
    environment = {**os.environ, "TERM": "dumb", "HOME": str(tmp_path)}
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment) as child:
        os.close(side)
        try:
            said = b""

            def wait(text: bytes) -> None:
                nonlocal said
                while text not in said:
                    said += os.read(main, 1 << 16)
                said = said.partition(text)[2]

            wait(b"(QEMU) ")
            os.write(main, f"dump-guest-memory paging=false protocol=file:{tmp_path}/dump\n".encode())
            wait(b'{"return": {}}')
            os.write(main, b"query-dump\n")
            wait(b'"status": "completed"')
            os.write(main, b"\x04")
        finally:
            child.kill()
            os.close(main)
    assert (tmp_path / "dump").stat().st_size > 32 << 20


def test_drgn(linux_door: Door, scratch: Path) -> None:
    """It asks for a dump into a memfd, of which it reads headers; behind `serve`, memory by the monitor."""
    judges.require("drgn")
    script = f"for one in {RANGES}: print(prog.read(*one, physical=True).hex())"
    done = subprocess.run(
        [str(BIN / "drgn"), "--qemu", str(linux_door.path), "-q", "--no-default-symbols", "-e", script],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    linux_door.guest.monitor.dump(scratch / "elf")
    core = ElfCore(scratch / "elf")
    expected = [core.read(*one) for one in RANGES]
    assert any(map(any, expected))
    assert done.stdout.split() == [data.hex() for data in expected]
    assert linux_door.guest.monitor.status() == "paused"


@pytest.mark.parametrize("lines", [1, 200])
def test_raw_socket(door: Door, lines: int) -> None:
    """A script that writes everything at once, and reads when the other side is done."""
    client = door.client(negotiate=False)
    client.send('{"execute": "qmp_capabilities"}\n' + '{"execute": "query-dump"}\n' * lines)
    assert [reply.keys() for reply in client.replies(lines + 1)] == [{"return"}] * (lines + 1)
