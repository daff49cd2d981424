"""What another client of the same QEMU hears: the table in docs/reference/other-clients.md, no more."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracles import judges

from live.dumping import until
from live.guests import QEMU

LOOK = ["STOP", "DUMP_COMPLETED", "RESUME"]
PAUSE = ["STOP", "DUMP_COMPLETED", "DUMP_COMPLETED", "RESUME"]
PATIENCE = 60


class Listener:
    """A client that does nothing but listen."""

    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(PATIENCE)
        self._connection.connect(str(path))
        self._stream = self._connection.makefile("rwb")
        self._stream.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str) -> list[dict[str, object]]:
        """Execute a command; the events before its answer."""
        self._stream.write(json.dumps({"execute": command}).encode() + b"\n")
        self._stream.flush()
        events = []
        while "event" in (message := json.loads(self._stream.readline())):
            events.append(message)
        assert "return" in message
        return events

    def close(self) -> None:
        self._stream.close()
        self._connection.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """Of a guest whose other monitor is at ``tmp_path / "qmp"``."""
    judges.require(QEMU)
    sockets = [tmp_path / "qmp", tmp_path / "other"]
    words = [word for path in sockets for word in ("-qmp", f"unix:{path},server=on,wait=off")]
    machine = ["-machine", "q35", "-accel", "tcg", "-m", "64M", "-display", "none", "-nodefaults"]
    with subprocess.Popen([shutil.which(QEMU) or QEMU, *machine, *words]) as qemu:
        try:
            until(sockets[1].exists, "it listens")
            it = Listener(sockets[1])
            yield it
            it.close()
        finally:
            qemu.kill()


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("info", "QMP"), LOOK),
        (("read", "QMP", "0", "64", "--hex"), LOOK),
        (("dump", "QMP", "OUT"), LOOK + PAUSE),
        (("dump", "QMP", "OUT", "--no-pause"), LOOK + LOOK),
        (("bench", "QMP", "--sample", "1M", "--to", "FOLDER"), LOOK + LOOK),
    ],
    ids=["info", "read", "dump", "dump --no-pause", "bench"],
)
def test_events(
    words: tuple[str, ...], expected: list[str], paused: bool, listener: Listener, tmp_path: Path
) -> None:
    if paused:
        listener.ask("stop")
    listener.ask("query-status")
    names = {"QMP": f"qmp:{tmp_path}/qmp", "OUT": str(tmp_path / "guest"), "FOLDER": str(tmp_path)}
    command = [sys.executable, "-m", "vmdump", *(names.get(word, word) for word in words)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    events = listener.ask("query-status")
    told = [str(event["event"]) for event in events]
    if paused:
        assert set(told) == {"DUMP_COMPLETED"}
    else:
        assert told == expected
    for event in events:
        if event["event"] == "DUMP_COMPLETED":
            data = event["data"]
            assert isinstance(data, dict)
            assert data["result"]["status"] == "failed"
