"""Machines of all architectures, stopped before their first instruction, with known memory and registers."""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from live.guests import PREFIX, Monitor, lock, ram_file, remove_files, remove_stale_files

MIB = 1 << 20


@dataclass(frozen=True)
class Kind:
    """What makes a machine.

    arch, machine, options   of qemu-system-{arch}
    memory                   MiB
    registers                numbers in QEMU's gdb stub that any value can be written to
    most_cpus                that the machine has
    word                     see `GdbStub`
    """

    arch: str
    machine: str
    registers: tuple[range, ...]
    memory: int = 32
    options: tuple[str, ...] = ()
    most_cpus: int = 2
    word: int = 0


KINDS = {
    "x86_64": Kind("x86_64", "q35", (range(16),)),
    "i386": Kind("i386", "pc", (range(8),)),
    "aarch64": Kind("aarch64", "virt", (range(32), range(34, 66)), options=("-cpu", "cortex-a57")),
    "aarch64-sve": Kind("aarch64", "virt", (range(32),), options=("-cpu", "max")),
    "arm": Kind("arm", "virt", (range(15), range(26, 58)), options=("-cpu", "cortex-a15")),
    "ppc": Kind("ppc", "g3beige", (range(32), range(71, 103)), most_cpus=1),
    "ppc-e500": Kind(
        "ppc", "ppce500", (range(32), range(71, 105)), memory=64, options=("-bios", "openbios-ppc")
    ),
    "ppc64": Kind("ppc64", "pseries", (range(32), range(71, 103), range(104, 136)), memory=256),
    "s390x": Kind("s390x", "s390-ccw-virtio", (range(2, 34), range(35, 83)), memory=64),
    "riscv64": Kind("riscv64", "virt", (range(1, 32),)),
    "riscv32": Kind("riscv32", "virt", (range(1, 32),), options=("-bios", "none")),
    # This machine has 1 GiB at least; the file behind it is a hole for the most part.
    "loongarch64": Kind("loongarch64", "virt", (range(1, 32), range(35, 67)), memory=1025),
    "mips64": Kind("mips64", "malta", (range(1, 32), range(33, 35)), word=8),
    "mips64el": Kind("mips64el", "malta", (range(1, 32), range(33, 35)), word=8),
    "m68k": Kind("m68k", "virt", ()),
    "mips": Kind("mips", "malta", (range(1, 32), range(33, 35)), word=4),
}


class GdbStub:
    """A connection to QEMU's gdb stub, in its packet protocol.

    word    bytes of each register, where the stub describes none and gives them only all at once; 0: it does
    """

    def __init__(self, path: Path, word: int) -> None:
        self._word = word
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rb")
        # Without knowing the description of the registers one may not name them.
        self.ask("qXfer:features:read:target.xml:0,ffb")

    def ask(self, text: str) -> str:
        """Send a packet; the payload of the answer."""
        self._socket.sendall(f"${text}#{sum(text.encode()) & 0xFF:02x}".encode())
        answer = b""
        while (byte := self._stream.read(1)) != b"#":
            answer = b"" if byte == b"$" else answer + byte
        self._stream.read(2)
        self._socket.sendall(b"+")
        return answer.decode()

    def select(self, cpu: int) -> None:
        assert self.ask(f"Hg{cpu + 1:x}") == "OK"

    def read(self, number: int) -> bytes:
        """Give a register of the selected vCPU, in the guest's byte order; nothing if there is none."""
        if self._word:
            return bytes.fromhex(self.ask("g"))[number * self._word :][: self._word]
        answer = self.ask(f"p{number:x}")
        return b"" if answer.startswith("E") else bytes.fromhex(answer)

    def write(self, number: int, data: bytes) -> None:
        if self._word:
            begin, every = 2 * number * self._word, self.ask("g")
            assert self.ask(f"G{every[:begin]}{data.hex()}{every[begin + 2 * len(data) :]}") == "OK"
        else:
            assert self.ask(f"P{number:x}={data.hex()}") == "OK", number

    def close(self) -> None:
        """Hang up; a packet of farewell would let the machine run."""
        self._stream.close()
        self._socket.close()


class Machine:
    """One QEMU, stopped; QEMU dies with the thread that started it.

    seed    of the memory's content and the registers
    """

    def __init__(self, kind: Kind, cpus: int, seed: int) -> None:
        self.kind = kind
        self.cpus = cpus
        remove_stale_files()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = lock(self.folder, fcntl.LOCK_SH)
        self.ram = ram_file(self.folder)
        self.qmp = self.folder / "qmp"
        self._monitor: Monitor | None = None
        self._fill(np.random.default_rng(seed))
        size = kind.memory * MIB
        backend = f"memory-backend-file,share=on,id=ram0,size={size},mem-path={self.ram}"
        command = [
            *("setpriv", "--pdeathsig", "KILL", f"qemu-system-{kind.arch}", "-accel", "tcg", "-S"),
            *("-machine", f"{kind.machine},memory-backend=ram0", "-m", f"{kind.memory}M", "-smp", str(cpus)),
            *("-object", backend, "-nodefaults", "-display", "none", *kind.options),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
            *("-qmp", f"unix:{self.folder / 'second'},server=on,wait=off"),
            *("-gdb", f"unix:{self.folder / 'gdb'},server=on,wait=off"),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        self._said = self.folder / "stderr"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        try:
            self._monitor = self._connect()
            self._scramble(random.Random(seed))
        except BaseException:
            self.stop()
            raise

    def _fill(self, rng: np.random.Generator) -> None:
        """Make the memory: random, compressible and zero pages, and holes."""
        with self.ram.open("wb") as file:
            file.truncate(self.kind.memory * MIB)
            for mib in (1, 5, self.kind.memory - 4):
                file.seek(mib * MIB)
                file.write(rng.integers(0, 256, 40 * 4096, np.uint8).tobytes())
                file.write(b"\0" * 40 * 4096)
                file.write(rng.integers(0, 4, 40 * 4096, np.uint8).tobytes())

    def _connect(self) -> Monitor:
        begin = time.monotonic()
        while True:
            try:
                return Monitor(self.folder / "second")
            except (FileNotFoundError, ConnectionError):
                if self._process.poll() is not None or time.monotonic() - begin > 60:
                    raise RuntimeError(f"QEMU gives no monitor: {self._said.read_text()}") from None
            time.sleep(0.02)

    @property
    def monitor(self) -> Monitor:
        assert self._monitor is not None
        return self._monitor

    def gdb(self) -> GdbStub:
        return GdbStub(self.folder / "gdb", self.kind.word)

    def _scramble(self, rng: random.Random) -> None:
        stub = self.gdb()
        for cpu in range(self.cpus):
            stub.select(cpu)
            for number in (number for numbers in self.kind.registers for number in numbers):
                size = len(stub.read(number))
                assert size, f"the stub of {self.kind.arch} has no register {number}"
                stub.write(number, rng.randbytes(size))
        stub.close()

    def human(self, line: str) -> str:
        """Ask the monitor that speaks to humans."""
        text: str = self.monitor.execute("human-monitor-command", command_line=line)
        return text

    def memory_map(self) -> list[tuple[int, int, int | None]]:
        """Give the ranges [begin, end) of memory, by the monitor's flat view of the system.

        With each one, the offset in the file behind the memory; None: another memory, a ROM for example.
        """
        text = self.human("info mtree -f").replace("\r", "")
        view = next(view for view in text.split("FlatView #") if 'AS "memory", root: system' in view)
        row = r"([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:ram|rom)\): (.*?)(?: @([0-9a-f]{16}))?$"
        return [
            (int(first, 16), int(last, 16) + 1, int(offset or "0", 16) if name == "ram0" else None)
            for first, last, name, offset in re.findall(row, view, re.MULTILINE)
        ]

    def stop(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._lock)
        remove_files(self.folder)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
