#!/usr/bin/env python3
"""Boot Debian's kernels of other architectures and compare vmdump's virtual addresses with what they say.

Usage: .venv/bin/python tests/live/kernels.py [--download] [NAME ...]     (names: see KERNELS; default: all)

Not a part of the suite: it downloads some 50 MiB for each kernel, and an emulated guest boots in up to two
minutes. With --download it does nothing else, and with APT=no it does not download. Packages come through an
apt of its own below build/kernels, for other architectures and suites than the system's; nothing is
installed. One line for each check; the exit code is 1 if one of them failed.

What is right is said by three: the guest (its /proc/kallsyms, uname and /proc/vmallocinfo, on its
serial port), QEMU's monitor (`gva2gpa`, by the tables of the first vCPU), and drgn, on a dump of the guest.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "scripts")]

import vmdump  # noqa: E402
from live.guests import Monitor  # noqa: E402

BUILD = REPOSITORY / "build/kernels"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BOOT_SECONDS = 900
ADDRESSES = 300


@dataclass(frozen=True)
class Kernel:
    """A kernel of Debian's and the machine that it runs on.

    suite, arch, package    where it comes from
    system, machine, cpu    of QEMU
    console                 of the kernel
    memory                  MiB
    drgn                    drgn has page tables for it
    gva2gpa                 QEMU knows an address as vmdump does; "some": those in use of late; "": none
    """

    suite: str
    arch: str
    package: str
    system: str
    machine: str
    cpu: str
    console: str
    memory: int = 512
    drgn: bool = True
    gva2gpa: Literal["all", "some", ""] = "all"


KERNELS = {
    "arm64": Kernel("bookworm", "arm64", "cloud-arm64", "aarch64", "virt", "cortex-a57", "ttyAMA0"),
    "arm64-6.12": Kernel("trixie", "arm64", "cloud-arm64", "aarch64", "virt", "max", "ttyAMA0"),
    "arm64-16k": Kernel("trixie", "arm64", "arm64-16k", "aarch64", "virt", "max", "ttyAMA0"),
    "ppc64el-radix": Kernel(
        "bookworm", "ppc64el", "powerpc64le", "ppc64", "pseries", "power9", "hvc0", 1024
    ),
    "ppc64el-hash": Kernel(
        "bookworm", "ppc64el", "powerpc64le", "ppc64", "pseries", "power8", "hvc0", 1024,
        drgn=False, gva2gpa="some",
    ),
    "ppc64el-6.12": Kernel(
        "bookworm-backports", "ppc64el", "powerpc64le", "ppc64", "pseries", "power9", "hvc0", 1024
    ),
    "s390x": Kernel("bookworm", "s390x", "s390x", "s390x", "s390-ccw-virtio", "max", "ttysclp0"),
    "s390x-6.12": Kernel(
        "bookworm-backports", "s390x", "s390x", "s390x", "s390-ccw-virtio", "max", "ttysclp0"
    ),
    "armhf": Kernel("bookworm", "armhf", "armmp", "arm", "virt", "cortex-a15", "ttyAMA0", drgn=False),
    "armhf-lpae": Kernel(
        "bookworm", "armhf", "armmp-lpae", "arm", "virt", "cortex-a15", "ttyAMA0", drgn=False
    ),
    "riscv64": Kernel("trixie", "riscv64", "riscv64", "riscv64", "virt", "rv64", "ttyS0", drgn=False),
    "mips64el": Kernel(
        "bookworm", "mips64el", "5kc-malta", "mips64el", "malta", "MIPS64R2-generic", "ttyS0",
        drgn=False, gva2gpa="",
    ),
    "i386-pae": Kernel("bookworm", "i386", "686-pae", "i386", "q35", "max", "ttyS0", drgn=False),
    "i386": Kernel("bookworm", "i386", "686", "i386", "q35", "max", "ttyS0", drgn=False),
}  # fmt: skip

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
echo 0 >/proc/sys/kernel/printk
echo 1 >/proc/sys/kernel/kptr_restrict
echo "RELEASE $(uname -r)"
echo "VERSION $(uname -v)"
grep -E ' (_stext|_etext|vprintk|schedule|kthread|panic|do_exit|sys_[rw].*)$' /proc/kallsyms |
    sed 's/^/SYMBOL /'
grep -E 'vmalloc|vmap' /proc/vmallocinfo | head -n 40 | sed 's/^/AREA /'
echo GUEST-READY
while sleep 1000; do :; done
"""


def run(*command: str, folder: Path = BUILD, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def apt_of(suite: str, arch: str) -> Path:
    """Set up an apt for an architecture of a suite, if there is none yet; its configuration file."""
    home = BUILD / "apt" / f"{suite}-{arch}"
    configuration = home / "apt.conf"
    if configuration.exists():
        return configuration
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "state/status").touch()
    # From where the system's own packages come.
    mirrors = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: bookworm").split()
    if not mirrors or not Path(KEYRING).exists():
        raise RuntimeError(f"the system's packages are not Debian bookworm's, or there is no {KEYRING}")
    (home / "etc/sources.list").write_text(f"deb [signed-by={KEYRING}] {mirrors[0]} {suite} main\n")
    part = configuration.with_suffix(".part")
    part.write_text(
        f'Dir "{home}";\nDir::State "{home}/state";\nDir::State::status "{home}/state/status";\n'
        f'Dir::Cache "{home}/cache";\nDir::Etc "{home}/etc";\nDir::Etc::sourceparts "-";\n'
        f'APT::Architectures {{ "{arch}"; }};\nAcquire::Languages "none";\nAPT::Sandbox::User "root";\n'
    )
    run("apt-get", "update", APT_CONFIG=str(part))
    return part.rename(configuration)


def unpacked(suite: str, arch: str, package: str, member: str = "") -> Path:
    """Download a package and unpack a folder of it, once; a meta package means what it depends on."""
    tree = BUILD / "trees" / f"{suite}-{arch}-{package}"
    if tree.is_dir():
        return tree
    if os.environ.get("APT") == "no":
        raise RuntimeError(f"{package} of {suite} for {arch} is not there, and APT=no forbids its download")
    BUILD.mkdir(parents=True, exist_ok=True)
    configuration = str(apt_of(suite, arch))
    if package.startswith("linux-image-"):
        text = run("apt-cache", "depends", f"{package}:{arch}", APT_CONFIG=configuration)
        found = re.search(r"Depends: (linux-image-[^\s:]+)", text)
        if found is None:
            raise RuntimeError(f"{suite} has no {package} for {arch}")
        package = found[1]
    tree.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        part = Path(name) / "tree"
        part.mkdir()
        run("apt-get", "download", f"{package}:{arch}", folder=Path(name), APT_CONFIG=configuration)
        (archive,) = Path(name).glob("*.deb")
        # Modules and their debugging information take gigabytes.
        pipe = 'dpkg-deb --fsys-tarfile "$0" | tar -x "$1"'
        run("bash", "-o", "pipefail", "-c", pipe, str(archive), f"./{member}", folder=part)
        return part.rename(tree)


def download(kernel: Kernel) -> tuple[Path, Path]:
    """Give the trees of the kernel's image, and of a busybox for its guest."""
    plain = "trixie" if kernel.suite == "trixie" else "bookworm"
    return (
        unpacked(kernel.suite, kernel.arch, f"linux-image-{kernel.package}", "boot"),
        unpacked(plain, kernel.arch, "busybox-static"),
    )


def files_of(kernel: Kernel, folder: Path, init: str) -> tuple[Path, Path]:
    """Give the kernel's image and an initramfs for it, with a script as its first process."""
    import importlib.machinery
    import importlib.util

    loader = importlib.machinery.SourceFileLoader("guest_script", str(REPOSITORY / "scripts/guest"))
    spec = importlib.util.spec_from_loader("guest_script", loader)
    assert spec
    script = importlib.util.module_from_spec(spec)
    sys.modules["guest_script"] = script
    loader.exec_module(script)

    tree, programs = download(kernel)
    image = next(iter(sorted((tree / "boot").glob("vmlinu[xz]-*"))))
    busybox = next(
        path for path in (programs / "bin/busybox", programs / "usr/bin/busybox") if path.is_file()
    )
    members = [(name, script.FOLDER, b"") for name in ("bin", "dev", "proc", "sys", "tmp")]
    members += [
        ("bin/busybox", script.PROGRAM, busybox.read_bytes()),
        ("init", script.PROGRAM, init.encode()),
    ]
    initrd = folder / "initrd.gz"
    initrd.write_bytes(script.archive(members))
    return image, initrd


class Booted:
    """A guest that has said what it knows, stopped."""

    def __init__(self, kernel: Kernel, folder: Path, init: str = INIT) -> None:
        image, initrd = files_of(kernel, folder, init)
        self.qmp = folder / "qmp"
        self._serial = folder / "serial"
        ram = folder / "ram"
        with ram.open("wb") as file:
            file.truncate(kernel.memory << 20)
        backend = f"memory-backend-file,share=on,id=ram0,size={kernel.memory}M,mem-path={ram}"
        command = [
            *("setpriv", "--pdeathsig", "KILL", f"qemu-system-{kernel.system}", "-accel", "tcg"),
            *("-machine", f"{kernel.machine},memory-backend=ram0", "-cpu", kernel.cpu),
            *("-m", f"{kernel.memory}M", "-object", backend, "-nodefaults", "-display", "none"),
            *("-kernel", str(image), "-initrd", str(initrd)),
            *("-append", f"console={kernel.console} rdinit=/init panic=1 nokaslr"),
            *("-serial", f"file:{self._serial}"),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
            *("-qmp", f"unix:{folder / 'second'},server=on,wait=off"),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.monitor: Monitor | None = None
        try:
            self.text = self.wait_for("GUEST-READY")
            self.monitor = Monitor(folder / "second")
            self.monitor.execute("stop")
        except BaseException:
            self.close()
            raise

    def wait_for(self, word: str) -> str:
        """Wait until the guest says a word; all that it has said."""
        begin = time.monotonic()
        while time.monotonic() - begin < BOOT_SECONDS:
            text = self._serial.read_text("utf-8", "replace") if self._serial.exists() else ""
            if word in text:
                return text.replace("\r", "")
            if self._process.poll() is not None:
                raise RuntimeError(f"QEMU ended: {text[-2000:]}")
            time.sleep(0.1)
        raise RuntimeError(f"the guest does not say {word}: {text[-2000:]}")

    def said(self, word: str) -> list[str]:
        return re.findall(rf"^{word} (.*)$", self.text, re.MULTILINE)

    def gva2gpa(self, address: int) -> int | None:
        assert self.monitor
        text = self.monitor.execute("human-monitor-command", command_line=f"gva2gpa {address:#x}")
        found = re.fullmatch(r"gpa: (?:0x)?([0-9a-f]+)\s*", text)
        return int(found[1], 16) if found else None

    def close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def translated(source: vmdump.Source, address: int, cpu: int | None = None) -> int | None:
    try:
        return source.translate(address, cpu=cpu)
    except vmdump.errors.TranslationError:
        return None


def some_addresses(source: vmdump.Source, rng: random.Random) -> list[int]:
    """Addresses in and beside the mappings."""
    runs = source.mappings()
    chosen = []
    for _ in range(ADDRESSES):
        index = rng.randrange(len(runs.size))
        begin, size = int(runs.virtual[index]), int(runs.size[index])
        chosen.append(begin + rng.choice([0, size - 1, rng.randrange(size), rng.randrange(size), size]))
    return [address for address in chosen if 0 <= address < 1 << 64]


def struct_page(source: vmdump.Source, symbol: int) -> int | None:
    """Give the virtual address of the struct page of a symbol, where they are one array."""
    info = source.vmcoreinfo
    begin = 0xC00C << 48 if source.arch.name == "ppc64le" else info.symbol("vmemmap")
    physical, size = source.kernel_to_phys(symbol), info.struct_size("page")
    if begin is None or physical is None or size is None:
        return None
    return (begin + physical // (info.page_size or 4096) * size) % (1 << 64)


def checks(kernel: Kernel, guest: Booted, folder: Path, seed: int) -> Iterator[tuple[str, bool, str]]:
    """Yield the name of each check, whether it holds, and what was found."""
    rng = random.Random(seed)
    names = [guest.said("RELEASE")[0], guest.said("VERSION")[0]]
    symbols = {row.split()[2]: int(row.split()[0], 16) for row in guest.said("SYMBOL")}
    areas = [re.match(r"0x([0-9a-f]+)-0x([0-9a-f]+)", row) for row in guest.said("AREA")]
    with vmdump.open_source(f"qmp:{guest.qmp}") as source:
        info = source.vmcoreinfo
        yield "VMCOREINFO", bool(info), f"{info.get('OSRELEASE')}, {len(info)} lines, {source.arch.name}"
        told = [info.symbol(name) == at for name, at in symbols.items() if info.symbol(name) is not None]
        yield "its symbols are kallsyms'", bool(told) and all(told), f"{sum(told)} of {len(told)}"
        address = (info.symbol("init_uts_ns") or 0) + (info.offset("uts_namespace.name") or 0)
        text = source.read_virtual(address, 6 * 65)
        there = [text[at : at + 65].split(b"\0")[0].decode("ascii", "replace") for at in (2 * 65, 3 * 65)]
        yield "init_uts_ns is uname's", there == names, f"{address:#x}: {there}"
        direct = {name: source.kernel_to_phys(at) for name, at in symbols.items()}
        same = [translated(source, symbols[name]) == at for name, at in direct.items() if at is not None]
        yield "symbols are where the image is", all(same), f"{sum(same)} of {len(same)}"
        pages = [
            at
            for area in areas
            if area
            # The last page of an area is a guard.
            for at in range(int(area[1], 16), int(area[2], 16) - (info.page_size or 4096), 4096)
        ]
        found = [at for at in (translated(source, page) for page in pages) if at is not None]
        inside = sum(any(block.start <= at < block.end for block in source.blocks) for at in found)
        text = f"{len(found)} of {len(pages)}, {len(set(found))} different ones, {inside} in memory"
        yield "vmalloc'ed pages are mapped", 0 < len(found) == inside, text
        page = struct_page(source, symbols["_stext"])
        if page is not None:
            place = translated(source, page)
            text = "" if place is None else source.read(place, 8).hex()
            yield "the struct page of _stext is mapped", place is not None, f"{page:#x}: {place}, {text}"
        chosen = [] if page is None else [page]
        chosen += some_addresses(source, rng) + rng.sample(pages, min(len(pages), ADDRESSES))
        mine = [translated(source, at) for at in chosen]
        # The monitor's processor, where the registers with its tables are known.
        cpu = 0 if source.arch.name == "s390x" else None
        if kernel.gva2gpa:
            theirs = [guest.gva2gpa(at) for at in chosen]
            by_cpu = [translated(source, at, cpu) for at in chosen]
            rows = list(zip(map(hex, chosen), by_cpu, theirs, strict=True))
            wrong = [row for row in rows if row[1] != row[2] and (row[2] or kernel.gva2gpa == "all")]
            mapped = sum(at is not None for at in theirs)
            yield "QEMU's gva2gpa", not wrong, f"{len(mine)} addresses, {mapped} mapped; not: {wrong[:5]}"
        if kernel.drgn:
            yield from drgns(source, folder, list(zip(chosen, mine, strict=True)))
        runs = source.mappings()
        yield "mappings", runs.size.size > 0, f"{runs.size.size} runs, {int(runs.size.sum()) >> 20} MiB"


def drgns(
    source: vmdump.Source, folder: Path, chosen: list[tuple[int, int | None]]
) -> Iterator[tuple[str, bool, str]]:
    import drgn

    vmdump.dump(source, folder / "dump", format="elf")
    program = drgn.Program()
    program.set_core_dump(folder / "dump")
    wrong, same, failed = [], 0, 0
    with vmdump.open(folder / "dump") as dump:
        for address, physical in chosen:
            try:
                mine = None if physical is None else dump.read_virtual(address, 1)
            except vmdump.errors.ReadError:
                continue
            try:
                theirs = program.read(address, 1)
            except drgn.FaultError:
                theirs = None
            except LookupError as error:  # FaultError is none
                yield "drgn on a dump", True, f"it needs debugging information: {error}"
                return
            same += mine == theirs is not None
            failed += theirs is None
            if mine != theirs:
                wrong.append((hex(address), physical, theirs))
    yield "drgn on a dump", not wrong, f"{same} bytes equal, {failed} unmapped; not: {wrong[:5]}"


def main(names: list[str]) -> int:
    failed = 0
    if names[:1] == ["--download"]:
        for name in names[1:] or list(KERNELS):
            try:
                download(KERNELS[name])
            except RuntimeError as error:
                failed += 1
                print(f"kernels: no guest with {name}: {error}", file=sys.stderr)
        return 1 if failed else 0
    seed = random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    for name in names or list(KERNELS):
        folder = Path(tempfile.mkdtemp(prefix="vmdump-kernel-", dir="/dev/shm"))
        guest = None
        begin = time.monotonic()
        try:
            guest = Booted(KERNELS[name], folder)
            print(f"{name}: booted in {time.monotonic() - begin:.0f} s", flush=True)
            for what, holds, found in checks(KERNELS[name], guest, folder, seed):
                failed += not holds
                print(f"{name}: {what}: {'ok' if holds else 'FAILED'} ({found})", flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
        finally:
            if guest is not None:
                guest.close()
            shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
