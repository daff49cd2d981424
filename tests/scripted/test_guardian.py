"""The guardian alone: whatever becomes of its parent, a guest that was stopped is let run, and no other."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("nothing_left")
PATIENCE = 30
PR_SET_CHILD_SUBREAPER = 36
QUERY = {"execute": "query-status", "id": "vmdump-guardian"}
CONT = {"execute": "cont", "id": "vmdump-guardian"}
PAUSED = {"return": {"status": "paused", "running": False}}

# Stands in for vmdump: does what it is told, line by line, until it is killed.
PARENT = """
import os, socket, sys, time
from vmdump.sources.qemu.guardian import Guardian, guardian_main

fd, path, lock, qemu = sys.argv[1:]
connection = socket.socket(fileno=int(fd))
guardian = Guardian(guardian_main.__file__, (fd, qemu, path), (int(fd), int(lock)))
guardian.wait_ready()
print(guardian._process.pid, flush=True)
for line in sys.stdin:
    word, _, rest = line.strip().partition(" ")
    answer = ""
    if word == "send":
        connection.sendall(rest.encode())
    elif word == "fork":
        answer = os.fork()
        if answer == 0:
            time.sleep(100)
            os._exit(0)
    elif word == "fill":
        connection.setblocking(False)
        try:
            while True:
                connection.send(b" " * 4096)
        except BlockingIOError:
            pass
    elif word == "arm_migrated":
        guardian.arm(migrated=True)
    else:
        answer = getattr(guardian, word)()
    print(answer, flush=True)
"""


class Guarded:
    """A parent with its guardian, and QEMU's end of their connection."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "qmp.sock")
        self.lock = folder / "lock"
        self.lock.touch()
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE)
        with self.lock.open() as lock, theirs:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.qemu = subprocess.Popen(["sleep", "1000"])
            words = [str(theirs.fileno()), self.path, str(lock.fileno()), str(self.qemu.pid)]
            self.parent = subprocess.Popen(
                [sys.executable, "-c", PARENT, *words],
                pass_fds=(theirs.fileno(), lock.fileno()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self.parent.stdout is not None
        self.pid = int(self.parent.stdout.readline())
        self.orphans: list[int] = []
        self._code: int | None = None

    def tell(self, *lines: str) -> str:
        """Let the parent do something; its last answer."""
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        for line in lines:
            self.parent.stdin.write(line + "\n")
            self.parent.stdin.flush()
            answer = self.parent.stdout.readline().strip()
        return answer

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the parent; whoever it leaves behind is this process's child then."""
        self.parent.send_signal(number)
        self.parent.wait(PATIENCE)

    def read(self, end: bytes = b"\n") -> bytes:
        """What comes next, up to and with `end`."""
        data = b""
        while not data.endswith(end):
            part = self.socket.recv(1)
            assert part, data
            data += part
        return data

    def expect_query(self) -> None:
        """What comes is the resynchronisation and the question, and nothing else."""
        data = self.read()
        assert data[:1] == b"\x1b"
        assert json.loads(data[1:]) == QUERY

    def expect_cont(self) -> None:
        """What comes is the question, and after the answer the command."""
        self.expect_query()
        self.answer(PAUSED)
        assert json.loads(self.read()) == CONT

    def answer(self, answer: dict[str, object], to: str = CONT["id"]) -> None:
        self.socket.sendall(json.dumps({**answer, "id": to}).encode() + b"\r\n")

    def ends_with(self, code: int) -> None:
        """The guardian ends, on its own."""
        pidfd = os.pidfd_open(self.pid)
        try:
            assert select.select([pidfd], [], [], PATIENCE)[0]
        finally:
            os.close(pidfd)
        _, status = os.waitpid(self.pid, 0)
        self._code = os.waitstatus_to_exitcode(status)
        assert self._code == code

    def locked(self) -> bool:
        """Whether anybody holds the lock."""
        with self.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def close(self) -> None:
        self.kill()
        self.qemu.kill()
        self.qemu.wait()
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.parent.stdin.close()
        self.parent.stdout.close()
        self.socket.close()
        # What the test did not see the end of.
        for pid in self.orphans + ([self.pid] if self._code is None else []):
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


@pytest.fixture
def guarded(tmp_path: Path, nothing_left: None) -> Iterator[Guarded]:
    """A parent and its guardian, who becomes this process's child when the parent is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    pair = Guarded(tmp_path)
    try:
        yield pair
    finally:
        pair.close()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_parent_is_killed_while_the_guest_stands_still(number: int, guarded: Guarded) -> None:
    guarded.tell("arm")
    guarded.kill(number)
    guarded.expect_cont()
    guarded.answer({"return": {}})
    guarded.ends_with(0)
    assert guarded.socket.recv(1) == b""


def test_parent_dies_in_the_middle_of_a_command(guarded: Guarded) -> None:
    """What it left on the wire is cut off by the control character."""
    guarded.tell("arm", 'send {"execute": "query-st')
    guarded.kill()
    assert guarded.read(b"query-st") == b'{"execute": "query-st'
    guarded.expect_cont()
    # QEMU complains about the half of a command, and events come in between.
    guarded.socket.sendall(b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n')
    guarded.socket.sendall(b'{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}\r\n')
    guarded.answer({"return": {}})
    guarded.ends_with(0)


def test_parent_dies_in_the_middle_of_an_answer(guarded: Guarded) -> None:
    """It read the start of a line; the guardian gets the rest, and more lines that are not for it."""
    guarded.tell("arm")
    guarded.kill()
    rest = b'urn": {}, "id": "7"}\r\n[1]\r\n"text"\r\n\xff\xfe\r\n{"return": {}, "id": "8"}\r\n'
    guarded.socket.sendall(rest + b"[" * 100_000 + b"\r\n")
    guarded.expect_cont()
    answer = json.dumps({"return": {}, "id": CONT["id"]}).encode() + b"\r\n"
    for byte in answer:
        guarded.socket.sendall(bytes([byte]))
    guarded.ends_with(0)


@pytest.mark.parametrize("words", [(), ("arm", "disarm"), ("arm", "disarm", "arm", "disarm"), ("disarm",)])
def test_nothing_is_sent_where_the_guest_runs(words: tuple[str, ...], guarded: Guarded) -> None:
    if words:
        guarded.tell(*words)
    guarded.kill()
    assert guarded.socket.recv(1) == b""
    guarded.ends_with(0)


def test_the_last_word_counts(guarded: Guarded) -> None:
    guarded.tell(*["arm", "disarm"] * 50, "arm")
    guarded.kill()
    guarded.expect_cont()
    guarded.answer({"return": {}})
    guarded.ends_with(0)


@pytest.mark.parametrize("words", [("arm",), ("arm", "disarm")])
def test_child_of_the_parent_lives_on(words: tuple[str, ...], guarded: Guarded) -> None:
    """It keeps the pipe and the connection open, so only the parent's death itself tells."""
    orphan = int(guarded.tell("fork"))
    guarded.orphans.append(orphan)
    guarded.tell(*words)
    guarded.kill()
    if len(words) == 1:
        guarded.expect_cont()
        guarded.answer({"return": {}})
    guarded.ends_with(0)
    os.kill(orphan, 0)  # it still lives


@pytest.mark.parametrize("armed", [True, False])
def test_signals_of_a_terminal_are_ignored(armed: bool, guarded: Guarded) -> None:
    if armed:
        guarded.tell("arm")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        os.kill(guarded.pid, number)
    assert os.getpgid(guarded.pid) == guarded.pid  # Ctrl-C does not even reach it
    guarded.kill()
    if armed:
        guarded.expect_cont()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guarded.pid, number)
        guarded.answer({"return": {}})
    guarded.ends_with(0)


def test_lock_is_held_until_the_guest_runs(guarded: Guarded) -> None:
    guarded.tell("arm")
    guarded.kill()
    guarded.expect_cont()
    assert guarded.locked()
    guarded.answer({"return": {}})
    guarded.ends_with(0)
    assert not guarded.locked()


def test_dismissed(guarded: Guarded) -> None:
    """Let go without having anything to do: it ends at once, and nothing is sent."""
    assert guarded.tell("arm", "disarm", "dismiss") == "True"
    guarded.kill()
    assert guarded.socket.recv(1) == b""
    assert guarded.socket.recv(1) == b""


def test_dismissed_while_the_guest_stands_still(guarded: Guarded) -> None:
    """Then it does its work first."""
    replies: list[str] = []
    thread = threading.Thread(target=lambda: replies.append(guarded.tell("arm", "dismiss")))
    thread.start()
    guarded.expect_cont()
    guarded.answer({"return": {}})
    thread.join(PATIENCE)
    assert replies == ["True"]


class Listener:
    """QEMU's socket, for those who come anew."""

    def __init__(self, path: str, serve: Callable[[socket.socket], None]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen()
        self._serve = serve
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        connection, _ = self._socket.accept()
        connection.settimeout(PATIENCE)
        with connection:
            try:
                self._serve(connection)
            except BaseException as error:
                self.error = error

    def close(self) -> None:
        self._thread.join(PATIENCE)
        self._socket.close()
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


def test_connection_was_closed(guarded: Guarded) -> None:
    """The guardian comes anew, waits for the greeting, negotiates, and lets the guest run."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        data = b""
        while data.count(b"\n") < 2:
            data += connection.recv(1)
        negotiation, question = data.splitlines()
        assert json.loads(negotiation) == {"execute": "qmp_capabilities"}
        assert json.loads(question.lstrip(b"\x1b")) == QUERY
        connection.sendall(b'{"return": {}}\r\n')
        connection.sendall(json.dumps({**PAUSED, "id": CONT["id"]}).encode() + b"\r\n")
        command = b""
        while not command.endswith(b"\n"):
            command += connection.recv(1)
        assert json.loads(command) == CONT
        connection.sendall(json.dumps({"return": {}, "id": CONT["id"]}).encode() + b"\r\n")
        assert connection.recv(1) == b""

    guarded.tell("arm")
    listener = Listener(guarded.path, serve)
    guarded.socket.close()
    guarded.kill()
    listener.close()
    guarded.ends_with(0)


@pytest.mark.parametrize(
    "state",
    [
        "running",
        "postmigrate",
        "shutdown",
        "finish-migrate",
        "inmigrate",
        "io-error",
        "guest-panicked",
        "debug",
    ],
)
def test_guest_that_is_not_paused(state: str, guarded: Guarded) -> None:
    """One that has migrated away, above all, must not run here as well."""
    guarded.tell("arm")
    guarded.kill()
    guarded.expect_query()
    guarded.answer({"return": {"status": state, "running": state == "running"}})
    guarded.ends_with(0)
    assert guarded.socket.recv(1) == b""


def told(status: str) -> dict[str, object]:
    return {"return": {"status": status, "running": False}}


HERE: list[dict[str, object]] = [
    {},
    {"status": "failed"},
    {"status": "completed", "total-time": 0},  # somebody has saved a snapshot
]
AWAY: dict[str, object] = {"status": "completed", "total-time": 12, "downtime": 3}


@pytest.mark.parametrize("migration", HERE, ids=str)
def test_guest_that_was_reset(migration: dict[str, object], guarded: Guarded) -> None:
    """By somebody else, while it was stopped: it is at its start then, and ran before."""
    guarded.tell("arm")
    guarded.kill()
    guarded.expect_query()
    guarded.answer(told("prelaunch"))
    assert json.loads(guarded.read())["execute"] == "query-migrate"
    guarded.answer({"return": migration})
    assert json.loads(guarded.read()) == CONT
    guarded.answer({"return": {}})
    guarded.ends_with(0)


def test_guest_that_has_migrated_and_was_reset(guarded: Guarded) -> None:
    guarded.tell("arm")
    guarded.kill()
    guarded.expect_query()
    guarded.answer(told("prelaunch"))
    assert json.loads(guarded.read())["execute"] == "query-migrate"
    guarded.answer({"return": AWAY})
    guarded.ends_with(0)
    assert guarded.socket.recv(1) == b""


def test_guest_that_ran_on_after_a_migration_and_was_reset(guarded: Guarded) -> None:
    """To a file, for example: then the answer to query-migrate says nothing."""
    guarded.tell("arm_migrated")
    guarded.kill()
    guarded.expect_query()
    guarded.answer(told("prelaunch"))
    assert json.loads(guarded.read()) == CONT
    guarded.answer({"return": {}})
    guarded.ends_with(0)


def test_somebody_else_resumes_it(guarded: Guarded) -> None:
    """If it is paused after that, it is by somebody's wish."""
    guarded.tell("arm")
    guarded.kill()
    at = {"seconds": 1, "microseconds": 0}
    events = (json.dumps({"event": name, "timestamp": at}) for name in ("RESUME", "STOP"))
    guarded.socket.sendall("".join(f"{event}\r\n" for event in events).encode())
    guarded.expect_query()
    with contextlib.suppress(BrokenPipeError):
        guarded.answer(PAUSED)
    guarded.ends_with(0)
    with contextlib.suppress(ConnectionResetError):
        assert guarded.socket.recv(1) == b""


def test_qemu_that_does_not_read(guarded: Guarded) -> None:
    """Its queue is full: the guardian waits until there is room, and until QEMU is gone."""
    guarded.tell("fill", "arm")
    guarded.kill()
    time.sleep(0.3)
    assert Path(f"/proc/{guarded.pid}").exists()
    guarded.qemu.kill()
    guarded.qemu.wait()
    guarded.ends_with(0)


def test_qemu_that_takes_its_time(guarded: Guarded) -> None:
    """One that is frozen, or drains its disks, is waited for, and asked again; any answer counts, once."""
    guarded.tell("arm")
    guarded.kill()
    guarded.expect_query()
    again = [json.loads(guarded.read().lstrip(b"\x1b")) for _ in range(2)]
    assert [asked["execute"] for asked in again] == ["query-status"] * 2
    ids = [QUERY["id"], *(asked["id"] for asked in again)]
    assert len(set(ids)) == 3
    guarded.answer(PAUSED, again[0]["id"])
    command = json.loads(guarded.read())
    assert command["execute"] == "cont"
    assert command["id"] not in ids
    # It has all the answers in the end; those that come late are no answers to the command.
    guarded.answer(PAUSED)
    guarded.answer(PAUSED, again[1]["id"])
    time.sleep(0.3)
    assert Path(f"/proc/{guarded.pid}").exists()
    guarded.answer({"return": {}}, command["id"])
    guarded.ends_with(0)


def test_answer_that_is_lost(guarded: Guarded) -> None:
    """Somebody else has read it: the guardian asks again."""
    guarded.tell("arm")
    guarded.kill()
    guarded.expect_cont()
    # `cont` was obeyed, and its answer is lost.
    again = json.loads(guarded.read().lstrip(b"\x1b"))
    assert again["execute"] == "cont"
    guarded.answer({"return": {}}, again["id"])
    guarded.ends_with(0)


def test_qemu_is_gone(guarded: Guarded) -> None:
    """There is no guest that could be paused."""
    guarded.tell("arm")
    guarded.qemu.kill()
    guarded.qemu.wait()
    guarded.socket.close()
    guarded.kill()
    guarded.ends_with(0)


def test_parent_is_stopped_and_goes_on(guarded: Guarded) -> None:
    """A parent that sleeps is not dead: nothing is sent behind its back."""
    guarded.tell("arm")
    guarded.parent.send_signal(signal.SIGSTOP)
    guarded.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        guarded.socket.recv(1)
    guarded.socket.settimeout(PATIENCE)
    guarded.parent.send_signal(signal.SIGCONT)
    guarded.tell("disarm")
    guarded.kill()
    assert guarded.socket.recv(1) == b""
