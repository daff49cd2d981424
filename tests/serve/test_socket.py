"""The socket of `vmdump serve`, and how the command ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from helpers.qmp_client import QmpClient, Started, start_serve

from vmdump.errors import OutputExists, SinkError
from vmdump.serve.listening import Listener


def test_listener_is_its_users_and_gone_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    before = os.umask(0)
    try:
        with Listener(str(path)) as listener:
            assert not path.exists()
            listener.appear()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert list(tmp_path.iterdir()) == [path]
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
    finally:
        os.umask(before)
    assert not list(tmp_path.iterdir())


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Listener(str(path)) as listener:
        listener.appear()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "live", "deaf"])
def test_what_else_is_there_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        if kind == "file":
            path.write_text("mine")
        elif kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("nowhere")
        else:
            other.bind(str(path))
            other.listen(0 if kind == "deaf" else 5)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            if kind == "deaf":
                client.connect_ex(str(path))
        before = path.lstat()
        with pytest.raises(OutputExists) as caught:
            Listener(str(path))
        assert str(path) in str(caught.value)
        after = path.lstat()
        assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
        for client in clients:
            client.close()


def test_one_that_came_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first, second = Listener(str(path)), Listener(str(path))
    first.appear()
    with pytest.raises(OutputExists):
        second.appear()
    second.close()
    assert path.is_socket()
    # Nor does the first remove what has taken its place.
    path.unlink()
    path.write_text("another's")
    first.close()
    assert path.read_text() == "another's"


def test_long_path_and_missing_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 150)
    with pytest.raises(SinkError):
        Listener(str(folder / "socket"))
    folder.mkdir()
    with Listener(str(folder / "socket")) as listener:
        listener.appear()
        assert (folder / "socket").is_socket()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_signals_end_it(qemu: Started, served: Started, number: signal.Signals, code: int) -> None:
    with QmpClient(served.path) as client:
        os.kill(served.pid, number)
        assert client.at_end()
    assert served.wait() == code
    assert not Path(served.path).exists()
    # QEMU serves the next one.
    with QmpClient(qemu.path) as client:
        assert client.ask("query-status")["return"]["running"]


def test_quit_ends_it_well(qemu: Started, served: Started) -> None:
    with QmpClient(served.path) as client, QmpClient(served.path) as other:
        assert client.until_reply("quit")[-1] == {"return": {}} or client.events
        assert client.at_end()
        assert other.at_end()
        assert [event["event"] for event in other.events] == ["SHUTDOWN"]
    assert served.wait() == 0
    assert not Path(served.path).exists()


def test_qemu_that_dies_is_told_of(qemu: Started, served: Started) -> None:
    with QmpClient(served.path) as client:
        qemu.process.kill()
        assert client.at_end()
    assert served.wait() == 13
    assert served.process.stderr is not None
    assert b"QEMU has ended" in served.process.stderr.read()
    assert not Path(served.path).exists()


def test_killed_one_leaves_a_socket_that_the_next_takes(
    stack: ExitStack, qemu: Started, tmp_path: Path
) -> None:
    first = stack.enter_context(start_serve(qemu.path, tmp_path))
    first.process.kill()
    first.wait()
    assert Path(first.path).is_socket()
    with start_serve(qemu.path, tmp_path) as second, QmpClient(second.path) as client:
        assert "return" in client.ask("query-status")
    assert not Path(first.path).exists()


def test_refusals(run_vmdump: RunVmdump, qemu: Started, tmp_path: Path) -> None:
    nobody = run_vmdump("serve", f"qmp:{tmp_path}/nobody", "--listen", tmp_path / "socket")
    assert nobody.returncode == 3
    assert b"cannot connect" in nobody.stderr
    other = run_vmdump("serve", "raw:x", "--listen", tmp_path / "socket")
    assert other.returncode == 2
    own = run_vmdump("serve", f"qmp:{qemu.path}", "--listen", qemu.path)
    assert own.returncode == 6
    assert b"somebody listens to it" in own.stderr
    with QmpClient(qemu.path) as client:  # which it did not disturb
        assert "return" in client.ask("query-status")
    missing = run_vmdump("serve", f"qmp:{qemu.path}")
    assert missing.returncode == 2
    assert not (tmp_path / "socket").exists()


def test_two_in_front_of_one(stack: ExitStack, qemu: Started, tmp_path: Path) -> None:
    """One serves the other's clients: QMP all the way, descriptors too."""
    first = stack.enter_context(start_serve(qemu.path, tmp_path, "first"))
    second = stack.enter_context(start_serve(first.path, tmp_path, "second"))
    with QmpClient(second.path) as client, (tmp_path / "file").open("wb") as file:
        assert "return" in client.ask("add-fd", fds=[file.fileno()])
        assert client.ask("query-fdsets")["return"]
