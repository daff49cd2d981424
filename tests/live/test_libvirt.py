"""A guest of a real libvirt: its daemon lives on, whatever vmdump is asked to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracles import judges

from live.dumping import refused, succeeds, until
from live.guests import QEMU, Monitor
from vmdump.errors import CapabilityError

NOBODY = 65534
LIBVIRTD = shutil.which("libvirtd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or "libvirtd"
PATIENCE = 120
SAFE = (11, 3, 0)
DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><emulator>{emulator}</emulator><memballoon model='none'/></devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{folder}/qmp,server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""


class Libvirt:
    """A session daemon with one domain, all its state in a folder of its own; the system's is left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        (folder / "bin").mkdir()
        emulator = folder / "bin" / QEMU
        # It asks each emulator that it finds what it can do, for some 3 s.
        emulator.symlink_to(shutil.which(QEMU) or QEMU)
        for name in ("run", "config/libvirt"):
            (folder / name).mkdir(parents=True)
        # Else it starts virtlogd as well.
        (folder / "config/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')
        (folder / "domain.xml").write_text(DOMAIN.format(name=self.name, emulator=emulator, folder=folder))
        self._user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        if self._user:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        self._environment = {
            "PATH": str(folder / "bin"),
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        with (folder / "log").open("wb") as log:
            self.daemon = subprocess.Popen(
                [LIBVIRTD],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=folder,
                **self._user,
            )

    def virsh(self, *words: str) -> str:
        """What virsh prints."""
        uri = f"qemu:///session?socket={self.folder}/run/libvirt/libvirt-sock"
        done = subprocess.run(
            [shutil.which("virsh") or "virsh", "-c", uri, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=self._environment,
            **self._user,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self) -> None:
        """Start the domain."""
        until((self.folder / "run/libvirt/libvirt-sock").exists, "libvirtd listens")
        self.virsh("create", str(self.folder / "domain.xml"))

    @property
    def pid(self) -> int:
        """Of QEMU."""
        return int((self.folder / f"run/libvirt/qemu/run/{self.name}.pid").read_text())

    def end(self) -> None:
        """End the daemon and the domain."""
        try:
            pid = self.pid
        except FileNotFoundError:
            pid = 0
        if pid:
            os.kill(pid, signal.SIGKILL)
            until(lambda: not os.path.exists(f"/proc/{pid}"), "QEMU has ended")
        self.daemon.terminate()
        try:
            self.daemon.wait(PATIENCE)
        finally:
            self.daemon.kill()
            self.daemon.wait()


@pytest.fixture
def libvirt() -> Iterator[Libvirt]:
    """A daemon with a domain that has a second QMP socket."""
    judges.require(QEMU)
    judges.require("virsh")
    judges.require(LIBVIRTD)
    folder = Path(tempfile.mkdtemp(prefix="vmdump-lv-"))
    try:
        it = Libvirt(folder)
        try:
            it.start()
            yield it
        finally:
            it.end()
    finally:
        shutil.rmtree(folder)


def test_daemon_lives_on(libvirt: Libvirt, tmp_path: Path) -> None:
    version = tuple(map(int, libvirt.virsh("version", "--daemon").rpartition(" ")[2].split(".")))
    output, source = tmp_path / "guest", f"qmp:{libvirt.folder}/qmp"
    if version >= SAFE:
        succeeds(source, output)
    else:
        line = refused(source, output, code=CapabilityError.exit_code)
        number = ".".join(map(str, version))
        assert f"virsh dump --memory-only {libvirt.name}" in line
        assert f"libvirtd {number}, process {libvirt.daemon.pid}" in line
    # What QEMU says to its monitors reaches the daemon before the answer to this.
    assert libvirt.virsh("qemu-monitor-command", libvirt.name, "--hmp", "info status") == "VM status: running"
    assert libvirt.daemon.poll() is None
    assert libvirt.virsh("domstate", libvirt.name) == "running"


def test_without_a_daemon(libvirt: Libvirt, tmp_path: Path) -> None:
    libvirt.daemon.terminate()
    libvirt.daemon.wait(PATIENCE)
    line = refused(f"qmp:{libvirt.folder}/qmp", tmp_path / "guest", code=CapabilityError.exit_code)
    assert "no daemon" in line
    monitor = Monitor(libvirt.folder / "qmp")
    try:
        assert monitor.status() == "running"
    finally:
        monitor.close()
