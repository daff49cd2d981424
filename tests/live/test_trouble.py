"""What goes wrong around a live guest: one line, the exit code of its class, no file, a guest that runs."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from oracles import judges

from live.conftest import MakeGuest
from live.dumping import HELD, MIB, Dumping, check_whole, guardians_of, noise, refused, succeeds, until
from live.guests import Guest, Share

SOURCE, SINK, CAPABILITY, BUSY, QMP = 3, 5, 7, 12, 13
QUICK = 5
"""Seconds within which a dump ends whose guest is gone."""


@pytest.fixture(scope="module")
def _guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    judges.require("qemu-system-x86_64")
    third = tmp_path_factory.mktemp("third") / "qmp"
    extra = ("-qmp", f"unix:{third},server=on,wait=off")
    with Guest("256M", boot=False, vmcoreinfo=False, extra=extra) as guest:
        noise(guest, 100 * MIB)
        yield guest


@pytest.fixture
def guest(_guest: Guest) -> Guest:
    """A running guest with a third QMP socket, of which a dump with `HELD` takes some three seconds."""
    _guest.monitor.execute("cont")
    return _guest


@pytest.fixture
def third(guest: Guest) -> str:
    """The other socket of the guest that a dump can use."""
    words = guest.process.args
    assert isinstance(words, list)
    return f"qmp:{str(words[-1]).removeprefix('unix:').partition(',')[0]}"


def check_well(guest: Guest, folder: Path) -> None:
    """The guest runs, nobody guards it, nothing was left, and it can be dumped."""
    assert guest.running()
    until(lambda: not guardians_of(guest), "the guardian has ended", 2)
    assert not list(folder.iterdir())
    succeeds(guest, folder / "afterwards")
    assert guest.running()


# Others that dump


def test_two_dumps_of_one_guest(guest: Guest, third: str, scratch: Path) -> None:
    with Dumping(guest, scratch / "first", *HELD) as first:
        first.wait_written()
        for pause in ((), ("--no-pause",)):
            line = refused(third, scratch / "second", *pause, code=BUSY)
            assert "another dump of this guest" in line
            assert not guest.running(), "the second dump let the guest run that the first one had stopped"
        assert first.child.poll() is None
        _, complaint = first.child.communicate(timeout=60)
        assert first.child.returncode == 0, complaint
    check_whole(scratch / "first")
    assert guest.running()
    succeeds(third, scratch / "second")


def test_two_dumps_of_two_guests(guest: Guest, bare_guest: MakeGuest, scratch: Path) -> None:
    other = bare_guest("256M")
    noise(other, 100 * MIB)
    other.monitor.execute("cont")
    with (
        Dumping(guest, scratch / "first", *HELD) as first,
        Dumping(other, scratch / "second", *HELD) as second,
    ):
        first.wait_written()
        second.wait_written()
        assert (guest.running(), other.running()) == (False, False)
        for dumping in (first, second):
            _, complaint = dumping.child.communicate(timeout=60)
            assert dumping.child.returncode == 0, complaint
    assert (guest.running(), other.running()) == (True, True)
    check_whole(scratch / "first")
    check_whole(scratch / "second")


def test_qemu_dumps_it_already(guest: Guest, scratch: Path) -> None:
    theirs = scratch / "theirs"
    guest.monitor.execute(
        "dump-guest-memory", paging=False, protocol=f"file:{theirs}", format="kdump-zlib", detach=True
    )
    assert guest.monitor.execute("query-dump")["status"] == "active"
    line = refused(guest, scratch / "ours", code=BUSY)
    assert guest.monitor.execute("query-dump")["status"] == "active", "too slow to tell"
    assert "QEMU is dumping this guest already" in line
    until(lambda: guest.monitor.execute("query-dump")["status"] == "completed", "QEMU's dump is done")
    theirs.unlink()
    check_well(guest, scratch)


def test_it_waits_for_a_migration(bare_guest: MakeGuest, scratch: Path) -> None:
    guest = bare_guest("64M", extra=("-incoming", "defer"))
    assert "incoming migration" in refused(guest, scratch / "dump", code=BUSY)


def test_it_migrates(bare_guest: MakeGuest, scratch: Path) -> None:
    """To a process that takes nothing, so that it lasts."""
    guest = bare_guest("64M")
    noise(guest, 32 * MIB)
    guest.monitor.execute("migrate", uri="exec:sleep 60")
    status = guest.monitor.execute("query-migrate")["status"]
    assert status in ("setup", "active"), status
    assert "migrating" in refused(guest, scratch / "dump", code=BUSY)
    guest.monitor.execute("migrate_cancel")


def test_somebody_else_lets_it_run(guest: Guest, scratch: Path) -> None:
    with Dumping(guest, scratch / "dump", *HELD) as dumping:
        dumping.wait_written()
        guest.monitor.execute("cont")
        assert "let the guest run" in dumping.end(BUSY)
    check_well(guest, scratch)


# QEMU goes away


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
@pytest.mark.parametrize("share", ["file", "private"])
def test_qemu_is_killed(share: Share, paused: bool, bare_guest: MakeGuest, scratch: Path) -> None:
    blob = scratch / "blob"
    blob.write_bytes(os.urandom(100 * MIB))
    guest = bare_guest(
        "192M",
        share=share,
        extra=("-device", f"loader,file={blob},addr=16M,force-raw=on".replace("16M", "0x1000000")),
    )
    if not paused:
        guest.monitor.execute("cont")
    output = scratch / "dump"
    with Dumping(guest, output, *HELD) as dumping:
        dumping.wait_written(8 * MIB)
        guest.process.kill()
        line = dumping.end(SOURCE, QMP, timeout=QUICK)
    assert "QEMU has ended" in line
    assert list(scratch.iterdir()) == [blob]
    until(lambda: not guardians_of(guest), "the guardian has ended")


def qemus_end(guest: Guest, client: int) -> int:
    """A descriptor of QEMU's side of the connection that a process has to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(guest.pid)
    try:
        for link in Path(f"/proc/{guest.pid}/fd").iterdir():
            if not os.readlink(link).startswith("socket:"):
                continue
            fd = libc.syscall(438, process, int(link.name), 0)  # pidfd_getfd
            if fd < 0:
                pytest.skip(f"another process's descriptor cannot be had: {os.strerror(ctypes.get_errno())}")
            with socket.socket(fileno=os.dup(fd)) as end:
                peer = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", peer)[0] == client:
                return int(fd)
            os.close(fd)
    finally:
        os.close(process)
    raise AssertionError(f"QEMU has no connection to {client}")


@pytest.mark.parametrize("name", [None, "--no-pause"])
def test_the_connection_is_cut(name: str | None, guest: Guest, scratch: Path) -> None:
    with Dumping(guest, scratch / "dump", *HELD, *((name,) if name else ())) as dumping:
        dumping.wait_written()
        with socket.socket(fileno=qemus_end(guest, dumping.child.pid)) as end:
            end.shutdown(socket.SHUT_RDWR)
        line = dumping.end(QMP, timeout=QUICK)
        assert "QMP connection" in line
        until(guest.running, "the guest runs again", 1)
    check_well(guest, scratch)


# The output


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "vmdump-test", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_the_disk_is_full(name: str, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    with small_disk(tmp_path / "disk", "16M") as disk:
        line = refused(guest, disk / "dump", "-f", name, code=SINK)
        assert "No space left on device" in line
        assert not list(disk.iterdir())
    check_well(guest, tmp_path / "out")


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_the_reader_goes_away(name: str, guest: Guest, scratch: Path) -> None:
    with Dumping(guest, "-", "-f", name) as dumping:
        assert dumping.child.stdout is not None
        assert len(dumping.child.stdout.read(MIB)) == MIB
        assert not guest.running()
        dumping.child.stdout.close()
        dumping.child.stdout = None
        assert "Broken pipe" in dumping.end(SINK)
    check_well(guest, scratch)


def test_sigkill_while_the_reader_stalls(guest: Guest, scratch: Path) -> None:
    with Dumping(guest, "-", "-f", "elf") as dumping:
        dumping.wait_written(1 << 16)
        time.sleep(0.3)
        assert not guest.running()
        dumping.signal(signal.SIGKILL)
        dumping.child.wait()
        until(guest.running, "the guest runs again", 1)
    check_well(guest, scratch)


def test_the_output_is_there_already(guest: Guest, scratch: Path) -> None:
    known = len(guest.monitor.event_names())
    (scratch / "dump").write_bytes(b"precious")
    with Dumping(guest, scratch / "dump") as dumping:
        dumping.end(6)
    assert (scratch / "dump").read_bytes() == b"precious"
    # It is said before the guest is stopped for it: at most QEMU's own 0.5 ms were spent.
    assert guest.monitor.event_names()[known:].count("STOP") <= 1
    assert guest.running()


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_the_output_is_the_guests_own_memory(name: str, guest: Guest, scratch: Path) -> None:
    ram = guest.ram_path()
    assert ram is not None
    guest.monitor.execute("stop")
    before = ram.read_bytes()
    with Dumping(guest, ram, "-f", name, "--force") as dumping:
        line = dumping.end(2, 5)
    assert str(ram) in line
    assert ram.read_bytes() == before
    link = scratch / "link"
    link.symlink_to(ram)
    with Dumping(guest, link, "-f", name, "--force") as dumping:
        dumping.end(2, 5)
    with (
        ram.open("r+b") as file,
        Dumping(guest, f"fd:{file.fileno()}", "-f", name, pass_fds=(file.fileno(),)) as dumping,
    ):
        dumping.end(2, 5)
    assert ram.read_bytes() == before
    assert guest.monitor.status() == "paused"


# The memory


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_the_ram_file_is_truncated(name: str, bare_guest: MakeGuest, scratch: Path) -> None:
    """The guest is paused all the time, so that QEMU does not notice."""
    guest = bare_guest("256M")
    noise(guest, 200 * MIB)
    ram = guest.ram_path()
    assert ram is not None
    options = HELD if name == "kdump-zlib" else ("-f", "elf", "-j", "1")
    fifo = scratch / "fifo"
    os.mkfifo(fifo)
    with Dumping(guest, fifo, *options) as dumping, fifo.open("rb") as stream:
        assert len(stream.read(4 * MIB)) == 4 * MIB
        os.truncate(ram, 64 * MIB)
        while stream.read(MIB):
            pass
        line = dumping.end(SOURCE)
    assert "ram" in line
    assert list(scratch.iterdir()) == [fifo]


# What is no QEMU


def test_tcp_is_refused(scratch: Path) -> None:
    line = refused("qmp:127.0.0.1:4444", scratch / "dump", code=CAPABILITY)
    assert "TCP" in line


def test_no_such_socket(scratch: Path) -> None:
    line = refused(f"qmp:{scratch / 'qmp'}", scratch / "dump", code=SOURCE)
    assert "No such file" in line
    assert "-qmp unix:" in line


def test_nobody_listens(scratch: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(scratch / "qmp"))
        line = refused(f"qmp:{scratch / 'qmp'}", scratch / "dump", code=SOURCE)
    assert "its QEMU has ended" in line


def test_another_client_holds_it(guest: Guest, scratch: Path) -> None:
    begin = time.monotonic()
    line = refused(f"qmp:{guest.folder / 'second'}", scratch / "dump", code=QMP)
    assert time.monotonic() - begin < 10
    assert "one client at a time" in line
    assert "-qmp unix:" in line
    assert guest.running()


def _serve(path: Path, script: str) -> subprocess.Popen[bytes]:
    """A server in a process of its own: what it does with a `connection`."""
    program = (
        "import socket, threading, time\n"
        "server = socket.socket(socket.AF_UNIX)\n"
        f"server.bind({str(path)!r})\n"
        "server.listen()\n"
        "print(flush=True)\n"
        "while True:\n"
        "    connection, _ = server.accept()\n"
    ) + "".join(f"    {line}\n" for line in script.splitlines())
    child = subprocess.Popen(["python3", "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"\n"
    return child


STRANGERS = {
    "garbage": "connection.sendall(b'HTTP/1.0 400 Bad Request\\r\\n\\r\\n')\nconnection.close()",
    "garbage-and-silence": "connection.sendall(b'220 mail ready\\r\\n')\nkept = connection",
    "binary": "connection.sendall(bytes(range(256)) * 1000)\nconnection.close()",
    "endless": "try:\n    while True: connection.sendall(b'x' * 65536)\nexcept OSError: pass",
    "closes": "connection.close()",
    "other-json": "connection.sendall(b'[1, 2]\\n')\nconnection.close()",
    "greets-and-closes": 'connection.sendall(b\'{"QMP": {"version": {}, "capabilities": []}}\\n\')\n'
    "connection.close()",
}


@pytest.mark.parametrize("name", STRANGERS)
def test_it_is_no_qmp(name: str, scratch: Path) -> None:
    with _serve(scratch / "qmp", STRANGERS[name]) as server:
        try:
            refused(f"qmp:{scratch / 'qmp'}", scratch / "dump", code=QMP)
        finally:
            server.kill()


PROXY = """
def forward(one, two):
    try:
        while data := one.recv(65536): two.sendall(data)
        two.shutdown(socket.SHUT_WR)
    except OSError: pass
backend = socket.socket(socket.AF_UNIX)
backend.connect(QEMU)
threading.Thread(target=forward, args=(connection, backend), daemon=True).start()
threading.Thread(target=forward, args=(backend, connection), daemon=True).start()
"""


def test_a_proxy(guest: Guest, scratch: Path) -> None:
    """It passes on the words, but not the descriptor that QEMU is to write to, nor has it the memory."""
    script = PROXY.replace("QEMU", repr(str(guest.qmp))).strip()
    with _serve(scratch / "qmp", script) as server:
        try:
            line = refused(f"qmp:{scratch / 'qmp'}", scratch / "dump", code=SOURCE)
        finally:
            server.kill()
    assert "behind a proxy" in line
    (scratch / "qmp").unlink()
    check_well(guest, scratch)
