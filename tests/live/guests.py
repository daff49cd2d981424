"""QEMU guests in child processes, each with one QMP socket for vmdump and one for the test itself."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from oracles.smaps import resident

IMAGE = Path(__file__).resolve().parents[2] / "build/guest"
QEMU = "qemu-system-x86_64"
SHM = Path("/dev/shm")
PREFIX = "vmdump-guest-"
Share = Literal["file", "memfd", "private", "hugetlb"]


class MonitorError(Exception):
    """QEMU refused a command; `kind` is the class of the error."""

    def __init__(self, command: str, error: dict[str, str]) -> None:
        super().__init__(f"{command}: {error['desc']}")
        self.kind = error["class"]


class Monitor:
    """A QMP session. Not for two threads at once: a test that needs that opens a second one."""

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._lines = self._socket.makefile("rb")
        try:
            self._socket.connect(str(path))
            self._socket.settimeout(240)
            self.greeting: dict[str, Any] = self._receive()["QMP"]
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise ConnectionError("QEMU has closed the monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command (`detach_x=1` stands for `detach-x`); its result, or `MonitorError`."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode())
        while True:
            message = self._receive()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise MonitorError(command, message["error"])
            self.events.append(message)

    def status(self) -> str:
        """The run state: "running", "paused", "prelaunch", ..."""
        state: str = self.execute("query-status")["status"]
        return state

    def event_names(self) -> list[str]:
        """The names of all events so far, in order; asks QEMU something, so that none is still on its way."""
        self.execute("query-name")
        return [event["event"] for event in self.events]

    def dump(self, path: Path, format: str = "elf") -> float:
        """QEMU's own dump of the guest to a file, without paging; the seconds that it took."""
        begin = time.monotonic()
        self.execute("dump-guest-memory", paging=False, protocol=f"file:{path}", format=format)
        return time.monotonic() - begin

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Guest:
    """One QEMU; ``with Guest(...) as guest: guest.wait_ready()``.

    memory, share   size of the RAM, and what it is: a file in /dev/shm, a memfd, anonymous memory, huge pages
    vmcoreinfo      with the device through which the kernel tells QEMU its VMCOREINFO
    fill            MiB of text, programs, gzip output and random bytes that it writes before it is ready
    busy, tick      the guest rewrites 64 MiB for ever; it counts on the serial console, five times a second
    boot            False: no kernel, and the guest stays in the state "prelaunch"
    initrd          which of the files in build/guest: "crash.gz" can load a capture kernel
    append, extra   more words for the kernel's command line; more arguments for QEMU

    QEMU dies with the thread that started it: no aborted test run leaves one behind.
    """

    def __init__(
        self,
        memory: str = "1G",
        *,
        share: Share = "file",
        vmcoreinfo: bool = True,
        fill: int = 0,
        busy: bool = False,
        tick: bool = False,
        boot: bool = True,
        machine: str = "q35",
        cpu: str = "qemu64",
        initrd: str = "initrd.gz",
        append: str = "",
        extra: Sequence[str] = (),
    ) -> None:
        self.memory = memory
        self.share = share
        remove_stale_files()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = lock(self.folder, fcntl.LOCK_SH)
        self.qmp = self.folder / "qmp"
        self.serial = self.folder / "serial"
        self.serial.touch()
        self.boot_seconds: float | None = None
        self._ram_file = ram_file(self.folder) if share == "file" else None
        self._monitor: Monitor | None = None
        # A busy host delivers the timer's interrupts too late for the kernel's check, after which it panics.
        kernel = "console=ttyS0 rdinit=/init panic=0 quiet no_timer_check"
        kernel = f"{kernel} fill={fill} busy={busy:d} tick={tick:d} {append}"
        command = [
            *("setpriv", "--pdeathsig", "KILL", QEMU, "-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "2"),
            *("-machine", f"{machine},memory-backend=ram0", "-m", memory, "-object", self._backend()),
            *("-nodefaults", "-net", "none", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{self.serial}"),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
            *("-qmp", f"unix:{self.folder / 'second'},server=on,wait=off"),
            *(("-device", "vmcoreinfo") if vmcoreinfo else ()),
            *(("-kernel", str(IMAGE / "vmlinuz"), "-initrd", str(IMAGE / initrd)) if boot else ("-S",)),
            *(("-append", kernel.strip()) if boot else ()),
            *extra,
        ]
        # A sanitizer that is preloaded into Python is not for QEMU.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        self._complaints = self.folder / "stderr"
        self._begin = time.monotonic()
        with self._complaints.open("wb") as complaints:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=complaints, stderr=complaints
            )
        try:
            self._monitor = self._connect()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _backend(self) -> str:
        kind = {
            "file": f"memory-backend-file,share=on,mem-path={self._ram_file}",
            "memfd": "memory-backend-memfd,share=on",
            "hugetlb": "memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=2M",
            "private": "memory-backend-ram",
        }[self.share]
        return f"{kind},id=ram0,size={self.memory}"

    def _connect(self) -> Monitor:
        """Open the test's own monitor, as soon as QEMU listens."""
        while True:
            try:
                return Monitor(self.folder / "second")
            except (FileNotFoundError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() - self._begin > 60:
                    said = self._complaints.read_text()
                    raise RuntimeError(f"QEMU gives no monitor: {said or self.process.args}") from None
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def monitor(self) -> Monitor:
        assert self._monitor is not None, "the guest was stopped"
        return self._monitor

    def wait_ready(self, timeout: float = 120) -> Guest:
        """Wait until the kernel is up and the memory is filled."""
        while b"GUEST-READY" not in self.serial.read_bytes():
            late = time.monotonic() - self._begin > timeout
            if late or self.process.poll() is not None or b"Kernel panic" in self.serial.read_bytes():
                raise RuntimeError(
                    f"the guest is not ready after {time.monotonic() - self._begin:.0f} s"
                    f" (QEMU: {self.process.poll()}, {self._complaints.read_text()!r}); its serial console:\n"
                    + self.serial.read_text(errors="replace")[-4000:]
                )
            time.sleep(0.05)
        if self.boot_seconds is None:
            self.boot_seconds = time.monotonic() - self._begin
        return self

    def running(self) -> bool:
        running: bool = self.monitor.execute("query-status")["running"]
        return running

    def ticks(self) -> int:
        """The last number that the guest has counted to; 0: none yet."""
        counted = re.findall(rb"TICK (\d+)\r?\n", self.serial.read_bytes())
        return int(counted[-1]) if counted else 0

    def wait_tick(self, timeout: float = 60) -> int:
        """Wait until the guest has counted on: the new number."""
        before, begin = self.ticks(), time.monotonic()
        while (now := self.ticks()) <= before:
            assert time.monotonic() - begin < timeout, f"the guest stays at TICK {before} for {timeout} s"
            time.sleep(0.02)
        return now

    def rss(self) -> int:
        """Resident memory of the QEMU process, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s*(\d+) kB$", status, re.MULTILINE)
        assert found, status
        return int(found[1]) * 1024

    def mapped(self) -> int:
        """Bytes of its memory that QEMU has mapped. What QEMU itself takes grows: its translated code."""
        place = self.monitor.execute("human-monitor-command", command_line="gpa2hva 0")
        begin = int(place.rpartition(" ")[2], 16)
        end = begin + (int(self.memory[:-1]) << {"M": 20, "G": 30}[self.memory[-1]])
        found = [size for low, high, size in resident(self.pid) if low < end and high > begin]
        assert found, place
        return sum(found)

    def ram_path(self) -> Path | None:
        """The file that is the guest's RAM, also where it has no name any more; None: private memory."""
        if self._ram_file is not None or self.share == "private":
            return self._ram_file
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(link).startswith("/memfd:memory-backend-memfd"):
                    return link
        raise RuntimeError("QEMU holds no memfd of this name")

    def allocated(self) -> int:
        """Bytes of the RAM file that take up memory; 0: private memory."""
        path = self.ram_path()
        return path.stat().st_blocks * 512 if path else 0

    def stop(self) -> None:
        """End QEMU and remove its files; a second time does nothing."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.folder.exists():
            os.close(self._lock)
            remove_files(self.folder)


def ram_file(folder: Path) -> Path:
    return SHM / f"{folder.name}.ram"


def remove_files(folder: Path) -> None:
    ram_file(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def lock(folder: Path, how: int) -> int:
    """Lock the folder of a guest; the handle, and closing it unlocks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, how)
    except OSError:
        os.close(handle)
        raise
    return handle


def remove_stale_files() -> None:
    """Remove what killed test runs have left; the folders of living ones are locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            os.close(lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
            remove_files(folder)
