"""An ordinary user's libvirtd, with one domain."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live.dumping import until
from live.guests import QEMU

NOBODY = 65534
LIBVIRTD = shutil.which("libvirtd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or "libvirtd"
PATIENCE = 120
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
        self.user: dict[str, Any] = (
            {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        )
        if self.user:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        self.environment = {
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
                env=self.environment,
                cwd=folder,
                **self.user,
            )

    @property
    def uri(self) -> str:
        """What a client outside the environment calls the daemon."""
        return f"qemu:///session?socket={self.folder}/run/libvirt/libvirt-sock"

    def virsh(self, *words: str) -> str:
        """What virsh prints."""
        done = subprocess.run(
            [shutil.which("virsh") or "virsh", "-c", self.uri, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=self.environment,
            **self.user,
        )
        assert done.returncode == 0, done.stderr
        said: str = done.stdout
        return said.strip()

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


@contextmanager
def session() -> Iterator[Libvirt]:
    """A daemon with a domain that has a second QMP socket."""
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
