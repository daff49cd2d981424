"""libvirtd and virtlogd as the distribution configures them, beside those that the machine may have.

They and the tests' commands share a mount namespace, in which libvirt's folders lie in a temporary one.
Nothing of pytest is needed here: benchmarks and programs use it as well.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from live.guests import IMAGE, QEMU

PATIENCE = 120
SYSTEM = "qemu:///system"
USER = "libvirt-qemu"
CGROUPS = Path("/sys/fs/cgroup")
IMAGES = Path("/var/lib/libvirt/images")
"""Where QEMU's user may read and libvirt writes, inside the namespace."""
SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

# Folders of libvirt, and what they are in the temporary folder. Of the machine's configuration there are the
# daemons' own files: the domains, networks and pools of the machine are not for a second daemon to start.
FOLDERS = {
    "etc": "/etc/libvirt",
    "run": "/run",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}

# Ends all that is inside when its standard input ends: with the process that made it, whatever ended that.
# libvirtd asks every emulator that it finds what it can do, for 2 to 4 s: one is left for it to find. It asks
# again at every look, 50 s in all, where root may use KVM and QEMU's user may not: here nobody may.
HOLDER = r"""
folder=$1 emulator=$2
shift 2
for emulators in /usr/bin/qemu-system-*; do
    [ "$emulators" -ef "$emulator" ] || mount --bind /dev/null "$emulators"
done
if [ -e /dev/kvm ]; then
    # QEMU's own namespace would have to move what is mounted there: so all of /dev is another one.
    mkdir "$folder/dev" && mount -t tmpfs dev "$folder/dev"
    for name in /dev/*; do
        if mountpoint -q "$name"; then
            mkdir "$folder$name" && mount --move "$name" "$folder$name"
            while mountpoint -q "$name"; do umount --lazy "$name"; done
        elif [ ! -d "$name" ] && [ "$name" != /dev/kvm ]; then
            cp -a "$name" "$folder$name"
        fi
    done
    mount --move "$folder/dev" /dev || exit
fi
while [ $# != 0 ]; do
    mount --bind "$folder/$1" "$2" || exit
    shift 2
done
echo ready
read -r _
groups=
for file in /run/libvirtd.pid /run/libvirt/qemu/*.pid /run/virtlogd.pid; do
    pid=$(cat "$file") || continue
    groups="$groups $(sed -n 's,.*/machine/\(qemu-[^/]*\).*,\1,p' "/proc/$pid/cgroup" | sort -u)"
    kill -KILL "$pid" && sleep 0.2
done 2>/dev/null
for group in $groups; do
    find /sys/fs/cgroup -depth -type d -path "*/machine/$group*" -exec rmdir {} +
done 2>/dev/null
rm -rf "$folder"
"""

LISTENER = """
import sys, time, libvirt
libvirt.virEventRegisterDefaultImpl()
connection = libvirt.open(sys.argv[1])
def told(connection, domain, event, detail, opaque):
    print(time.monotonic(), event, detail, flush=True)
domain = connection.lookupByUUIDString(sys.argv[2])
connection.domainEventRegisterAny(domain, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, told, None)
print("listening", flush=True)
while True:
    libvirt.virEventRunDefaultImpl()
"""

DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>{kernel}
  </os>
  <features><acpi/><vmcoreinfo state='{vmcoreinfo}'/></features>
  <on_reboot>restart</on_reboot>
  <devices>
    <serial type='file'><source path={serial}/></serial><memballoon model='none'/>{devices}
  </devices>
  {more}
</domain>
"""
KERNEL = "<kernel>{images}/vmlinuz</kernel><initrd>{images}/initrd.gz</initrd><cmdline>{line}</cmdline>"

# What of virDomainEventType and its details comes up here.
EVENTS = {
    (2, 0): "started",
    (3, 0): "suspended",
    (4, 0): "resumed",
    (5, 1): "destroyed",
}


class Host:
    """``with Host() as host: domain = host.start("name")``; needs root.

    Attributes
    ----------
    folder : Path
        All files of the daemons.
    inside : tuple of str
        What a command starts with to run in their namespace.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vmdump-libvirt-"))
        self.folder.chmod(0o755)
        for name in (*FOLDERS, "run/lock", "lib/images", "cache/qemu", "log/qemu"):
            (self.folder / name).mkdir(exist_ok=True)
        for path in Path("/etc/libvirt").glob("*.conf"):
            shutil.copy(path, self.folder / "etc")
        shutil.chown(self.folder / "cache/qemu", USER, USER)
        for name in ("vmlinuz", "initrd.gz"):
            if (IMAGE / name).exists():
                shutil.copy(IMAGE / name, self.folder / "lib/images")
        pairs = [word for name, place in FOLDERS.items() for word in (name, place)]
        # Without a network of its own, its firewall rules would be the machine's.
        words = ["unshare", "--mount", "--net", "sh", "-c", HOLDER, "sh", str(self.folder)]
        self._holder = subprocess.Popen(
            [*words, shutil.which(QEMU) or QEMU, *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        target = str(self._holder.pid)
        self.inside = ("nsenter", "--target", target, "--mount", "--net", "--root", "--wd", "--")
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        try:
            assert self._holder.stdout is not None
            if self._holder.stdout.readline() != b"ready\n":
                raise RuntimeError("no namespace with folders of its own could be made")
            self.start_daemon("virtlogd")
            self.start_daemon("libvirtd")
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start_daemon(self, name: str = "libvirtd") -> None:
        """Start one of the two, and wait until it listens."""
        socket = {"libvirtd": "libvirt/libvirt-sock", "virtlogd": "libvirt/virtlogd-sock"}[name]
        (self.folder / "run" / socket).unlink(missing_ok=True)
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [*self.inside, shutil.which(name, path=SBIN) or name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _wait(lambda: (self.folder / "run" / socket).exists(), f"{name} listens")

    @property
    def namespace(self) -> str:
        """The mount namespace of the daemons, by the name that /proc gives it."""
        return os.readlink(f"/proc/{self._holder.pid}/ns/mnt")

    @property
    def daemon(self) -> subprocess.Popen[bytes]:
        """The libvirtd of now."""
        return self._daemons["libvirtd"]

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End libvirtd by a signal and start another one."""
        self.daemon.send_signal(number)
        self.daemon.wait(PATIENCE)
        self.start_daemon()

    def said(self) -> str:
        """What libvirtd has written on standard error."""
        return (self.folder / "libvirtd.out").read_text(errors="replace")

    def path(self, inside: Path) -> Path:
        """What a path below one of libvirt's folders is out here."""
        for name, place in FOLDERS.items():
            if inside.is_relative_to(place):
                return self.folder / name / inside.relative_to(place)
        return inside

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return subprocess.run(
            [*self.inside, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def virsh(self, *words: str) -> str:
        """What virsh prints; it must succeed."""
        done = self.run("virsh", "--connect", SYSTEM, *words)
        assert done.returncode == 0, f"virsh {words}: {done.stderr}"
        return done.stdout.strip()

    def version(self) -> str:
        """Of libvirtd."""
        return self.virsh("version", "--daemon").rpartition(" ")[2]

    def start(self, name: str, *, paused: bool = False, **options: Any) -> Domain:
        """Start a domain; `options` are those of `domain_xml`. `paused`: its vCPUs have never run."""
        domain = Domain(self, name)
        # QEMU opens it, virtlogd writes to it: it must be there to be read before.
        domain.serial.touch()
        file = self.folder / "domain.xml"
        file.write_text(domain_xml(name, serial=domain.serial.name, **options))
        self.virsh("create", str(file), *(["--paused"] if paused else []))
        return domain

    def end(self) -> None:
        """End domains, daemons and the namespace; remove the folder."""
        for name in ("libvirtd", "virtlogd"):
            daemon = self._daemons.get(name)
            if daemon is None:
                continue
            if name == "libvirtd":
                if daemon.poll() is not None:
                    self.start_daemon()
                    daemon = self.daemon
                # It removes the domains' control groups, too.
                virsh = ("virsh", "--connect", SYSTEM)
                for uuid in self.run(*virsh, "list", "--uuid").stdout.split():
                    self.run(*virsh, "destroy", uuid)
            daemon.terminate()
            try:
                daemon.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._holder.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Domain:
    """One that `Host.start` has started."""

    host: Host
    name: str
    _uuid: str = ""

    @property
    def source(self) -> str:
        """What vmdump calls it."""
        return f"libvirt:{self.name}"

    @property
    def uuid(self) -> str:
        if not self._uuid:
            self._uuid = self.host.virsh("domuuid", self.name)
        return self._uuid

    @property
    def serial(self) -> Path:
        """What its serial console has printed."""
        letters = re.sub(r"\W", "-", self.name, flags=re.ASCII)
        return self.host.folder / f"lib/images/{letters}.serial"

    @property
    def pid(self) -> int:
        """Of QEMU."""
        # The file with the number alone has an escaped name.
        status = (self.host.folder / f"run/libvirt/qemu/{self.name}.xml").read_text()
        found = re.search(r"^<domstatus .*\bpid='(\d+)'", status, re.MULTILINE)
        assert found, status
        return int(found[1])

    def user(self) -> str:
        """Whom QEMU runs as."""
        return pwd.getpwuid(int(confinement(self.pid)["Uid"])).pw_name

    def virsh(self, command: str, *words: str) -> str:
        """``virsh COMMAND NAME WORDS``."""
        return self.host.virsh(command, self.name, *words)

    def state(self) -> tuple[str, str]:
        """State and reason, as virsh names them."""
        told = re.fullmatch(r"([\w ]+) \(([\w ]+)\)", self.virsh("domstate", "--reason"))
        assert told
        return told[1], told[2]

    def taints(self) -> str:
        """What libvirt says of it that nobody should be told; all of it is in the domain's log as well."""
        log = self.host.folder / f"log/qemu/{self.name}.log"
        found = [line for line in log.read_text(errors="replace").splitlines() if "tainted" in line]
        return "\n".join([*found, self.virsh("dominfo").partition("Messages:")[2].strip()]).strip()

    def dump(self, path: Path, format: str = "elf") -> float:
        """``virsh dump --memory-only``; the seconds that it took."""
        begin = time.monotonic()
        self.virsh("dump", str(path), "--memory-only", "--format", format)
        return time.monotonic() - begin

    def wait_ready(self, timeout: float = PATIENCE) -> Domain:
        """Wait until the kernel is up and the memory is filled."""
        _wait(lambda: b"GUEST-READY" in self.serial.read_bytes(), f"{self.name} is up", timeout)
        return self

    def listen(self) -> Listener:
        """Listen to its events from now on."""
        return Listener(self)


class Listener:
    """The events of a domain, as libvirt tells them to a client."""

    def __init__(self, domain: Domain) -> None:
        words = [*domain.host.inside, sys.executable, "-c", LISTENER, SYSTEM, domain.uuid]
        self._child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == "listening\n"

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()

    def end(self, patience: float = 0.5) -> list[tuple[float, str]]:
        """Give each event and when it came, in monotonic seconds, after waiting for the last ones."""
        time.sleep(patience)
        self._child.kill()
        told, _ = self._child.communicate()
        events = []
        for line in told.splitlines():
            moment, event, detail = line.split()
            number = int(event), int(detail)
            events.append((float(moment), EVENTS.get(number, str(number))))
        return events


def domain_xml(
    name: str,
    *,
    serial: str,
    memory: int = 512,
    vcpus: int = 2,
    boot: bool = True,
    vmcoreinfo: bool = True,
    line: str = "",
    devices: str = "",
    arguments: Sequence[str] = (),
) -> str:
    """A domain's XML.

    memory      in MiB
    boot        False: the firmware finds nothing to start
    line        more words for the kernel's command line
    devices     XML of more of them
    arguments   more arguments for QEMU; they taint the domain
    """
    words = f"console=ttyS0 rdinit=/init panic=0 quiet no_timer_check {line}".strip()
    more = "".join(f"<qemu:arg value={quoteattr(word)}/>" for word in arguments)
    return DOMAIN.format(
        name=escape(name),
        memory=memory,
        vcpus=vcpus,
        kernel=KERNEL.format(images=IMAGES, line=escape(words)) if boot else "",
        vmcoreinfo="on" if vmcoreinfo else "off",
        serial=quoteattr(str(IMAGES / serial)),
        devices=devices,
        more=f"<qemu:commandline>{more}</qemu:commandline>" if more else "",
    )


def confinement(pid: int) -> dict[str, str]:
    """What /proc says of how a process is confined: its user, its seccomp mode, its mount namespace."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = {"namespace": os.readlink(f"/proc/{pid}/ns/mnt")}
    for name in ("Uid", "Seccomp"):
        found = re.search(rf"^{name}:\s+(\S+)", status, re.MULTILINE)
        assert found
        fields[name] = found[1]
    return fields


def control_groups(name: str) -> list[Path]:
    """The control groups whose names have this in them."""
    return [path for path in CGROUPS.glob("**/machine/*") if path.is_dir() and name in path.name]


def _wait(holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > seconds:
            raise RuntimeError(f"after {seconds} s not yet: {what}")
        time.sleep(0.02)
