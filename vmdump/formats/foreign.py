"""Files that people take for dumps: what they are by their first bytes, and what makes a dump of them.

Sources of the signatures: file(1), crash's and libkdumpfile's readers, s390-tools, volatility's layers, and
the header files of QEMU, libvirt, Xen, VirtualBox, Firecracker and FreeBSD.
"""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from vmdump.formats import flattened, kdump, lime
from vmdump.formats.elf import ELFMAG

__all__ = ["HEAD", "KINDS", "TAIL", "ForeignKind", "is_text", "read_kind", "recognise"]

HEAD = 64 << 10
"""Bytes from the start of a file that :func:`recognise` takes, or all of a shorter one."""
TAIL = 512
"""Bytes from its end."""

_DUMP_LIVE = "vmdump dump qmp:vm.qmp {out}"
_RAW = "volatility3 writes it as raw memory: vol -f {file} layerwriter.LayerWriter"
_NO_MEMORY = "it has no memory of a guest; dump the guest that uses it: vmdump dump qmp:SOCKET {out}"
_IMAGE = "it has no memory of a guest; dump the guest that runs it: vmdump dump qmp:SOCKET {out}"
_CRASH = "crash opens it: crash vmlinux {file}"
_INFLATE = (
    "python3 -c 'import sys, zlib; stream = zlib.decompressobj(); "
    "sys.stdout.buffer.writelines(map(stream.decompress, sys.stdin.buffer))'"
)


@dataclass(frozen=True)
class ForeignKind:
    """A kind of file that vmdump does not read.

    Attributes
    ----------
    name : str
        What to call it, with an article.
    signatures : tuple of (int, bytes)
        Bytes that all have to be there, by file offset; negative ones count from the end.
    way_out : str
        What makes a dump of it; ``{file}`` stands for its name, ``{new}`` and ``{out}`` for names that are
        not taken, ``{incoming}`` for QEMU's way to read it, all of them quoted for a shell.
    contains : bytes
        Somewhere in the first `HEAD` bytes, too.
    test : callable or None
        Asked about the first bytes, too.
    """

    name: str
    signatures: tuple[tuple[int, bytes], ...]
    way_out: str
    contains: bytes = b""
    test: Callable[[bytes], bool] | None = None

    def matches(self, head: bytes, tail: bytes) -> bool:
        """Tell whether a file is of this kind, by its first and its last bytes."""
        for offset, signature in self.signatures:
            data, at = (head, offset) if offset >= 0 else (tail, len(tail) + offset)
            if at < 0 or not data.startswith(signature, at):
                return False
        return self.contains in head and (self.test is None or self.test(head))

    def advice(self, path: str) -> str:
        """Give the way out for one file."""
        quoted = shlex.quote(path)
        return self.way_out.format(
            file=quoted,
            new=shlex.quote(f"{path}.unpacked"),
            out=shlex.quote(f"{path}.kdump"),
            incoming=shlex.quote(f"exec:cat {quoted}"),
        )


def _packed(name: str, signature: bytes, command: str, offset: int = 0) -> ForeignKind:
    # From standard input where possible: without the usual suffix, which libvirt does not add, the commands
    # refuse a file.
    redirected = command if "{file}" in command else f"{command} < {{file}}"
    return ForeignKind(name, ((offset, signature),), f"unpack it: {redirected} > {{new}}")


def _disk(name: str, *signatures: tuple[int, bytes]) -> ForeignKind:
    return ForeignKind(f"a disk image ({name})", signatures, _NO_MEMORY)


def _inflates(head: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(head, 16)
    except zlib.error:
        return b""


def _is_mach_core(head: bytes) -> bool:
    # The file type is the fourth 32-bit word; 4 is MH_CORE.
    return head[12:16] in (b"\4\0\0\0", b"\0\0\0\4")


def is_text(head: bytes) -> bool:
    """Tell whether a file begins as a text does."""
    return re.fullmatch(rb"[\t\n\r\x1b\x20-\x7e\x80-\xff]+", head[:512]) is not None


_TEXT_LOG = re.compile(rb"(?:<\d+>)?\[ *\d+\.\d{6}\]|(?:Oops|Panic|Emergency|Restart)#\d+ Part\d+")

KINDS: tuple[ForeignKind, ...] = (
    # Saved states of virtual machines.
    ForeignKind(
        "a migration stream of QEMU in the mapped-ram form",
        ((0, b"QEVM"),),
        "start QEMU with the guest's options and -S -incoming defer -qmp unix:vm.qmp,server=on,wait=off, set "
        "the capability mapped-ram, migrate-incoming from {file}, then: " + _DUMP_LIVE,
        contains=b"mapped-ram",
    ),
    ForeignKind(
        "a migration stream of QEMU (migrate, savevm, a suspended guest of Proxmox)",
        ((0, b"QEVM"),),
        "start QEMU with the guest's options and -S -incoming {incoming} -qmp "
        "unix:vm.qmp,server=on,wait=off, then: " + _DUMP_LIVE,
    ),
    ForeignKind(
        "a save image of libvirt (virsh save, virsh dump without --memory-only)",
        ((0, b"LibvirtQemudSave"),),
        "restore the guest paused, and let libvirt dump it: virsh restore --paused {file} && virsh dump "
        "--memory-only --format kdump-zlib DOMAIN {out}",
    ),
    ForeignKind(
        "a save image of libvirt that was not finished",
        ((0, b"LibvirtQemudPart"),),
        "save the guest again, or dump it: virsh dump --memory-only --format kdump-zlib DOMAIN {out}",
    ),
    *(
        ForeignKind(
            "a suspended or snapshotted state of VMware (.vmss, .vmsn)",
            ((0, magic),),
            "VMware's tool makes a core of it: vmss2core -N6 {file}",
        )
        for magic in (
            b"\xd0\xbe\xd0\xbe",
            b"\xd0\xbe\xd2\xbe",
            b"\xd1\xbe\xd1\xbe",
            b"\xd2\xbe\xd2\xbe",
            b"\xd3\xbe\xd3\xbe",
            b"\xd1\xba\xd1\xba",
            b"\xd2\xba\xd2\xba",
        )
    ),
    ForeignKind(
        "a saved state of VirtualBox",
        ((0, b"\x7fVirtualBox SavedState V"),),
        "start the machine again, and dump it: VBoxManage debugvm MACHINE dumpvmcore --filename {out}",
    ),
    ForeignKind(
        "a saved domain of Xen (xl save)",
        ((0, b"Xen saved domain, xl format\n \0 \r"),),
        "restore it, and take its memory from inside with AVML or LiME: xl restore -p {file}",
    ),
    ForeignKind(
        "a saved domain of Xen (libxl)",
        ((0, b"LibxlFmt"),),
        "restore it, and take its memory from inside with AVML or LiME",
    ),
    ForeignKind(
        "a saved domain of Xen (libvirt)",
        ((0, b"libvirt-xml\n \0 \r"),),
        "restore it, and take its memory from inside with AVML or LiME: virsh restore --paused {file}",
    ),
    *(
        ForeignKind(
            "the device state of a Firecracker snapshot",
            ((0, magic),),
            "the guest's memory is in the snapshot's other file, as raw memory: vmdump dump raw:MEMORY {out}",
        )
        for magic in (b"\0\0\x64\x86\x84\x19\x10\x07", b"\0\0\xaa\xaa\x84\x19\x10\x07")
    ),
    ForeignKind(
        "the device state of a Cloud Hypervisor snapshot",
        ((0, b"{"),),
        "the guest's memory is raw memory in memory-ranges beside it: vmdump dump raw:memory-ranges {out}",
        contains=b'"snapshot_data"',
    ),
    # Windows.
    ForeignKind("a crash dump of Windows (64-bit)", ((0, b"PAGEDU64"),), _RAW),
    ForeignKind("a crash dump of Windows (32-bit)", ((0, b"PAGEDUMP"),), _RAW),
    ForeignKind(
        "a minidump of a Windows process", ((0, b"MDMP"),), "it has no memory of a guest; WinDbg opens it"
    ),
    ForeignKind(
        "a compressed crash dump of DumpIt",
        ((0, b"ZDMP"),),
        "DumpIt's own tool makes a crash dump of Windows of it: Z2Dmp.exe {file}",
    ),
    *(
        ForeignKind("a hibernation file of Windows", ((0, magic),), _RAW)
        for magic in (b"hibr", b"HIBR", b"wake", b"WAKE", b"RSTR")
    ),
    # Crash dumps of other kernels and older tools.
    ForeignKind("a crash dump of diskdump, kdump's predecessor", ((0, b"DISKDUMP"),), _CRASH),
    *(
        ForeignKind("a stand-alone dump of s390", ((0, magic),), "unpack it: zgetdump -f elf {file} > {new}")
        for magic in (b"\xa8\x19\x01\x73\x61\x8f\x23\xfd", b"\xa8\x19\x01\x73\x61\x8f\x23\xfe")
    ),
    *(
        ForeignKind("a crash dump of LKCD", ((0, magic),), _CRASH)
        for stem in (b"\xa8\x19\x01\x73\x61\x8f\x23",)
        for end in (b"\xed", b"\xcd")
        for magic in (stem + end, (stem + end)[::-1])
    ),
    ForeignKind(
        "a crash dump of sadump",
        ((0, b"sadump\0\0"),),
        "makedumpfile reads it: makedumpfile -l -d 0 -x vmlinux {file} {out}",
    ),
    ForeignKind("a crash dump of Solaris", ((0, b"\xed\xc8\xfe\xde"),), "mdb opens it: mdb {file}"),
    ForeignKind(
        "a crash dump of FreeBSD (minidump)",
        ((0, b"minidump FreeBSD/"),),
        "kgdb opens it: kgdb kernel {file}",
    ),
    ForeignKind(
        "a crash dump of FreeBSD with its header",
        ((0, b"FreeBSD Kernel Dump\0"),),
        "savecore(8) of FreeBSD takes it apart",
    ),
    *(
        ForeignKind(
            "a core of macOS",
            ((0, magic),),
            "it has no guest-physical memory; lldb opens it: lldb -c {file}",
            test=_is_mach_core,
        )
        for magic in (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa\xcf", b"\xfe\xed\xfa\xce")
    ),
    *(
        ForeignKind(
            "a swap area with a hibernation image of Linux",
            ((page - 10, magic),),
            "only the kernel that wrote it resumes from it; start the guest, and dump it: " + _DUMP_LIVE,
        )
        for page in (4096, 16384, 65536)
        for magic in (b"S1SUSPEND", b"ULSUSPEND")
    ),
    *(_disk("a swap area", (page - 10, b"SWAPSPACE2")) for page in (4096, 16384, 65536)),
    # Forensic containers.
    ForeignKind(
        "a container of EnCase (E01)",
        ((0, b"EVF\x09\x0d\x0a\xff\0"),),
        "unpack it: ewfexport -u -f raw -t {new} {file}",
    ),
    ForeignKind(
        "a container of EnCase (Ex01)",
        ((0, b"EVF2\x0d\x0a\x81\0"),),
        "unpack it: ewfexport -u -f raw -t {new} {file}",
    ),
    ForeignKind("a container of AFF", ((0, b"AFF10\r\n\0"),), "unpack it: affconvert -r {file}"),
    ForeignKind("a container of AFF4", ((0, b"PK\3\4"),), "unpack it: aff4imager -e '*' {file}", b"aff4"),
    # Disks.
    ForeignKind(
        "a disk image (qcow2)",
        ((0, b"QFI\xfb"),),
        "it has memory only in snapshots of savevm, which 'qemu-img snapshot -l {file}' lists; start QEMU "
        "with the guest's options and -S -loadvm SNAPSHOT -qmp unix:vm.qmp,server=on,wait=off, then: "
        + _DUMP_LIVE,
    ),
    _disk("VMDK", (0, b"KDMV")),
    _disk("VMDK", (0, b"COWD")),
    _disk("VMDK", (0, b"# Disk DescriptorFile")),
    _disk("VDI", (0x40, b"\x7f\x10\xda\xbe")),
    _disk("VHDX", (0, b"vhdxfile")),
    _disk("VHD", (0, b"conectix")),
    _disk("VHD", (-512, b"conectix")),
    _disk("QED", (0, b"QED\0")),
    _disk("LUKS", (0, b"LUKS\xba\xbe")),
    _disk("GPT", (512, b"EFI PART")),
    _disk("ISO 9660", (32769, b"CD001")),
    # Packed as a whole.
    _packed("a file compressed by xz", b"\xfd7zXZ\0", "unxz"),
    _packed("a file compressed by zstd", b"\x28\xb5\x2f\xfd", "unzstd"),
    _packed("a file compressed by gzip", b"\x1f\x8b", "gunzip"),
    _packed("a file compressed by bzip2", b"BZh", "bunzip2"),
    _packed("a file compressed by lz4", b"\x04\x22\x4d\x18", "unlz4"),
    _packed("a file compressed by lzop", b"\x89LZO\0\r\n\x1a\n", "lzop -d"),
    _packed("a file compressed by lzip", b"LZIP", "lzip -d"),
    _packed("a file compressed by lzma", b"\x5d\0\0\x80\0", "unlzma"),
    _packed("a file compressed by compress", b"\x1f\x9d", "gunzip"),
    _packed("a file compressed by snappy", b"\xff\6\0\0sNaPpY", "python3 -m snappy -d"),
    _packed("an archive of zip", b"PK\3\4", "unzip -p {file}"),
    _packed("an archive of zip", b"PK\7\x08PK\3\4", "unzip -p {file}"),
    _packed("an archive of 7z", b"7z\xbc\xaf\x27\x1c", "7z x -so {file}"),
    _packed("an archive of rar", b"Rar!\x1a\7", "unrar p -inul {file}"),
    _packed("an archive of tar", b"ustar", "tar -xOf -", offset=257),
    _packed("an archive of cpio", b"070701", "cpio -i --to-stdout"),
    ForeignKind(
        "a file encrypted by openssl",
        ((0, b"Salted__"),),
        "decrypt it: openssl enc -d -aes-256-cbc -pbkdf2 -in {file} -out {new}",
    ),
    *(
        ForeignKind(
            "a file compressed by zlib, as LiME does it",
            ((0, magic),),
            f"unpack it: {_INFLATE} < {{file}} > {{new}}",
            test=lambda head: len(_inflates(head)) > 0,
        )
        for magic in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
    ),
    # Kernels and programs.
    ForeignKind("a kernel image of x86 (bzImage)", ((0x1FE, b"\x55\xaa"), (0x202, b"HdrS")), _IMAGE),
    ForeignKind("a kernel image of AArch64", ((0x38, b"ARM\x64"),), _IMAGE),
    ForeignKind("a kernel image of RISC-V", ((0x38, b"RSC\x05"),), _IMAGE),
    ForeignKind("a kernel image of U-Boot", ((0, b"\x27\x05\x19\x56"),), _IMAGE),
    ForeignKind("a program of Windows or EFI", ((0, b"MZ"),), _IMAGE, contains=b"PE\0\0"),
    # Texts.
    ForeignKind(
        "the text of a kernel's log",
        ((0, b""),),
        "it has no memory; 'vmdump dmesg' prints the log of a dump",
        test=lambda head: is_text(head) and _TEXT_LOG.match(head) is not None,
    ),
)
"""In the order in which they are tried: the more specific ones first."""


_READ = {
    ELFMAG: "an ELF file",
    kdump.SIGNATURE: "a kdump file",
    flattened.SIGNATURE: "a flattened dump",
    lime.LIME_SIGNATURE: "a LiME file",
    lime.AVML_SIGNATURE: "an AVML file",
}


def read_kind(head: bytes) -> str | None:
    """Name the kind of a file that is read, by its first bytes; None for all others."""
    return next((name for signature, name in _READ.items() if head.startswith(signature)), None)


def recognise(head: bytes, tail: bytes, *, texts: bool = True) -> ForeignKind | None:
    """Tell which kind a file is of; None if no known one matches.

    Parameters
    ----------
    head : bytes
        Its first `HEAD` bytes.
    tail : bytes
        Its last `TAIL` bytes.
    texts : bool
        Also try those kinds that have no signature; memory may be text.
    """
    for kind in KINDS:
        if kind.matches(head, tail) and (texts or any(signature for _, signature in kind.signatures)):
            return kind
    return None
