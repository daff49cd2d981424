"""Guests of libvirt whose daemon cannot be asked: refused before it hears of anything, unless it is safe."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import vmdump
from scripted.fake_qemu import FakeQemu
from vmdump.errors import CapabilityError, QmpError
from vmdump.sources.libvirt import connection, daemons
from vmdump.sources.qemu import reroute

pytestmark = pytest.mark.usefixtures("nothing_left")
DAEMON = "vmdump-virtd"
MONITOR = "charmonitor"
# A process with a name and a mapped file, as a daemon is seen from outside.
PROGRAM = """
import ctypes, mmap, os, socket, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode())
with open(sys.argv[2], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
listener = socket.socket(socket.AF_UNIX)
if sys.argv[3:]:
    listener.bind(sys.argv[3])
    listener.listen(4)
print("ready", flush=True)
sys.stdin.read()
"""
MakeDaemon = Callable[..., Path]
ANOTHER_NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--")


def devices(
    place: str = "unix:/run/user/7/libvirt/qemu/lib/monitor.sock,server=on",
) -> object:
    """What query-chardev says of a guest of libvirt."""
    other = {"frontend-open": True, "filename": "unix:/run/qmp,server=on", "label": "compat_monitor0"}
    return [other, {"frontend-open": True, "filename": place, "label": MONITOR}]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeDaemon]:
    """daemon("libvirt.so.0.9000.0"): a process that is taken for libvirt's, with that file mapped.

    daemon(library, name, *words, place=path): by another name, started by that command, listening there.
    """
    monkeypatch.setattr(daemons, "_DAEMONS", (DAEMON,))
    with ExitStack() as stack:

        def start(file_name: str, name: str = DAEMON, *start: str, place: Path | None = None) -> Path:
            library = tmp_path / file_name
            library.write_bytes(bytes(4096))
            words = [] if place is None else [str(place)]
            child = stack.enter_context(
                subprocess.Popen(
                    [*start, sys.executable, "-I", "-S", "-c", PROGRAM, name, str(library), *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            stack.callback(child.kill)
            return library

        yield start


def refused(qemu: FakeQemu, out: Path) -> str:
    """The dump ends with the way out, and QEMU was not asked for anything that libvirt hears of."""
    with pytest.raises(CapabilityError) as caught:
        vmdump.dump(qemu.source, out / "guest")
    assert not list(out.iterdir())
    assert set(qemu.commands) <= {"qmp_capabilities", "query-chardev"}
    text = str(caught.value)
    assert qemu.path in text
    assert "virsh dump --memory-only" in text
    assert "libvirt:" in text
    return text


@pytest.mark.parametrize(
    ("library", "told"),
    [
        ("libvirt.so.0.9000.0", "9.0.0"),
        ("libvirt.so.0.8000.0", "8.0.0"),
        ("libvirt.so.0.9010.0", "9.10.0"),
        ("libvirt.so.0", "unknown version"),
        ("xlibvirt.so.0.11003.0", "unknown version"),
    ],
)
def test_daemon_that_may_crash(
    library: str, told: str, daemon: MakeDaemon, tmp_path: Path, out: Path
) -> None:
    daemon(library)
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        assert told in refused(qemu, out)


@pytest.mark.parametrize("library", ["libvirt.so.0.7000.0", "libvirt.so.0.10000.0", "libvirt.so.0.12000.1"])
def test_safe_daemon(library: str, daemon: MakeDaemon, tmp_path: Path, out: Path) -> None:
    daemon(library)
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        vmdump.dump(qemu.source, out / "guest")
        assert qemu.running


def test_upgraded_since_it_was_started(daemon: MakeDaemon, tmp_path: Path, out: Path) -> None:
    daemon("libvirt.so.0.9000.0").unlink()
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        assert "9.0.0" in refused(qemu, out)


def test_one_of_two_daemons_may_crash(daemon: MakeDaemon, tmp_path: Path, out: Path) -> None:
    daemon("libvirt.so.0.11003.0")
    daemon("libvirt.so.0.9005.0")
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        assert "9.5.0" in refused(qemu, out)


@pytest.fixture
def namespaces() -> None:
    """Skip where this user may not make namespaces."""
    if subprocess.run([*ANOTHER_NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make namespaces")


@pytest.mark.usefixtures("namespaces")
def test_daemon_of_another_container(daemon: MakeDaemon, tmp_path: Path, out: Path) -> None:
    daemon("libvirt.so.0.9000.0", DAEMON, *ANOTHER_NAMESPACE)
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        assert "no daemon" in refused(qemu, out)
        # The guest's own, beside it.
        daemon("libvirt.so.0.11003.0")
        vmdump.dump(qemu.source, out / "guest")


@pytest.mark.usefixtures("namespaces")
def test_daemon_with_other_folders(daemon: MakeDaemon, tmp_path: Path, out: Path) -> None:
    """In the same PID namespace; where the QEMU has the monitor's socket, it has nothing."""
    folder = tmp_path / "monitors"
    folder.mkdir()
    (folder / "monitor.sock").touch()
    hide = f'mount -t tmpfs none {folder} && exec "$@"'
    daemon(
        "libvirt.so.0.9000.0",
        DAEMON,
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        hide,
        "sh",
    )
    place = f"unix:{folder}/monitor.sock,server=on"
    with FakeQemu(tmp_path, answers={"query-chardev": devices(place)}) as qemu:
        assert "no daemon" in refused(qemu, out)
        daemon("libvirt.so.0.11003.0")
        vmdump.dump(qemu.source, out / "guest")


@pytest.mark.usefixtures("namespaces")
def test_superuser_of_a_container() -> None:
    user = os.geteuid() or 4321
    with subprocess.Popen(
        ["unshare", "--user", "--", "sh", "-c", "echo ready; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        Path(f"/proc/{child.pid}/uid_map").write_text(f"0 {user} 1")
        found = daemons._superuser(child.pid)
        child.kill()
    assert found == user
    assert daemons._superuser(os.getpid()) == 0


def test_wrapped_daemon(
    daemon: MakeDaemon, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "_DAEMONS", ("vmdvirtd",))
    daemon("libvirt.so.0.11003.0", ".vmdvirtd-wrapped")  # of which the kernel cuts off the end
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        vmdump.dump(qemu.source, out / "guest")


def test_daemon_that_has_ended(daemon: MakeDaemon, tmp_path: Path, out: Path) -> None:
    daemon("libvirt.so.0.11003.0")
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PROGRAM, DAEMON, __file__],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its parent does not want to know yet
        with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
            vmdump.dump(qemu.source, out / "guest")


@pytest.mark.skipif(os.geteuid() == 0, reason="the daemon of root's session is the system's user's as well")
def test_another_users_daemon_does_not_count(daemon: MakeDaemon, tmp_path: Path, out: Path) -> None:
    daemon("libvirt.so.0.11003.0")
    place = "unix:/var/lib/libvirt/qemu/domain-1-web/monitor.sock,server=on"
    with FakeQemu(tmp_path, answers={"query-chardev": devices(place)}) as qemu:
        assert "no daemon" in refused(qemu, out)


WORDS = (
    *("qemu", "-name", "guest=web,debug-threads=on", "-uuid", "12345678-1234-1234-1234-123456789abc"),
    *("-chardev", f"socket,id={MONITOR},fd=27"),
)


def test_daemon_that_listens_nowhere(daemon: MakeDaemon, tmp_path: Path, out: Path) -> None:
    daemon("libvirt.so.0.9000.0")
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        assert "socket cannot be seen" in refused(qemu, out)


def test_without_libvirt_python(
    daemon: MakeDaemon, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon("libvirt.so.0.9000.0", place=tmp_path / "libvirt-sock")
    monkeypatch.setattr(reroute, "command_line", lambda pid: [*WORDS])
    monkeypatch.setattr(connection, "_libvirt_and_loop", connection._libvirt_and_loop.__wrapped__)
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        assert "pip install 'vmdump[libvirt]'" in refused(qemu, out)


def test_guest_that_does_not_tell_its_uuid(
    daemon: MakeDaemon, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon("libvirt.so.0.9000.0", place=tmp_path / "libvirt-sock")
    monkeypatch.setattr(reroute, "command_line", lambda pid: [*WORDS[:3], *WORDS[5:]])
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        assert "UUID" in refused(qemu, out)


@pytest.fixture(scope="module")
def event_loop() -> None:
    """libvirt's, which stays open for as long as the process."""
    if importlib.util.find_spec("libvirt") is None:
        pytest.skip("libvirt-python is not installed")
    loop = connection._libvirt_and_loop()[1]
    loop.enter()
    loop.leave()


@pytest.mark.usefixtures("event_loop")
def test_daemon_that_lets_nobody_in(
    daemon: MakeDaemon, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "libvirt-sock"
    daemon("libvirt.so.0.9000.0", place=place)
    monkeypatch.setattr(reroute, "command_line", lambda pid: [*WORDS])
    place.rename(tmp_path / "elsewhere")  # after which nobody comes in by that name
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        assert "cannot connect" in refused(qemu, out)


@pytest.mark.usefixtures("daemon")
def test_no_daemon(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, answers={"query-chardev": devices()}) as qemu:
        assert "no daemon" in refused(qemu, out)


@pytest.mark.usefixtures("daemon")
def test_by_its_command_line(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["qemu", "-name", "guest=web,debug-threads=on", "-chardev", f"socket,id={MONITOR},fd=27"]
    monkeypatch.setattr(reroute, "command_line", lambda pid: [*words, ""])
    with FakeQemu(tmp_path, answers={"query-chardev": []}) as qemu:
        assert "--memory-only web " in refused(qemu, out)
    # A QEMU that does not know the command.
    (tmp_path / "other").mkdir()
    with FakeQemu(tmp_path / "other") as qemu:
        assert "--memory-only web " in refused(qemu, out)


@pytest.mark.usefixtures("daemon")
def test_name_for_the_shell(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["qemu", "-name", "guest=web 2,,old,debug-threads=on", "-chardev", f"socket,id={MONITOR},fd=27"]
    monkeypatch.setattr(reroute, "command_line", lambda pid: [*words, ""])
    with FakeQemu(tmp_path) as qemu:
        assert "--memory-only 'web 2,old' FILE" in refused(qemu, out)


def test_other_guests(tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, answers={"query-chardev": [{"label": "serial0", "filename": "pty"}]}) as qemu:
        vmdump.dump(qemu.source, out / "guest")


@pytest.mark.parametrize("answer", [None, {}, "devices", [None], ["charmonitor"]])
def test_list_of_devices_that_is_none(answer: object, tmp_path: Path, out: Path) -> None:
    with FakeQemu(tmp_path, answers={"query-chardev": answer}) as qemu:
        with pytest.raises(QmpError, match="query-chardev"):
            vmdump.dump(qemu.source, out / "guest")
        assert "dump-guest-memory" not in qemu.commands
