"""The guest as QEMU 7.2 sees it when it writes a dump: what its files say that the guest's notes do not."""

from __future__ import annotations

from dataclasses import replace

from vmdump.arch.qemu import TARGETS, QemuTarget
from vmdump.codecs.registry import PagePacker, find_engine
from vmdump.errors import CapabilityError, EngineUnavailable, ReadError, RequestError
from vmdump.formats.layout import ByteOrder
from vmdump.formats.names import DumpFormat
from vmdump.guest.guest import Guest
from vmdump.kernels.pack import Packer

__all__ = ["ENGINE", "LEVEL", "check_compat", "make_compat_packer", "notes_of_qemu", "qemu_target"]

ENGINE = "zlib"
LEVEL = 1

_SMBIOS_AREA = 0xF0000
_SMBIOS_AREA_END = 0x100000
_ANCHOR = b"_SM_"
_ANCHOR_SIZE = 31
_PROCESSOR = 4
"""Type of the SMBIOS structure that says which CPU it is."""


def check_compat(
    name: str,
    dump_format: DumpFormat,
    *,
    engine: str | None,
    level: int | None,
    pause: bool,
    vmcoreinfo: bool,
    filters: bool,
) -> None:
    """Refuse what QEMU does not do.

    Parameters
    ----------
    name : str
        Of the program whose files are wanted: ``qemu``.
    dump_format, engine, level, pause
        What is asked for.
    vmcoreinfo, filters : bool
        VMCOREINFO is given; types of pages are excluded.

    Raises
    ------
    RequestError
        The name is unknown, or QEMU has no such option.
    EngineUnavailable
        This build has no zlib, or another library in its place.
    """
    if name != "qemu":
        raise RequestError(f"compat: {name!r} is unknown; qemu is the only one", parameter="compat")
    if not pause:
        raise RequestError("compat: QEMU pauses the guest, so --no-pause contradicts it", parameter="compat")
    if filters:
        raise RequestError("compat: QEMU excludes no pages, so exclude contradicts it", parameter="compat")
    if vmcoreinfo:
        raise RequestError(
            "compat: QEMU takes VMCOREINFO from the guest only; do not give one", parameter="compat"
        )
    if dump_format.family == "elf":
        return
    if dump_format.codec != "zlib":
        raise RequestError(
            f"compat: {dump_format.name} is not supported; elf and kdump-zlib are",
            parameter="compat",
        )
    if engine not in (None, ENGINE) or level not in (None, LEVEL):
        raise RequestError(f"compat: QEMU uses {ENGINE} at level {LEVEL}, nothing else", parameter="compat")
    found = find_engine(dump_format.codec, ENGINE)
    if "ng" in found.version:
        raise EngineUnavailable(
            f"compat: this machine's zlib is {found.version}, whose streams differ from zlib's",
            engine=ENGINE,
        )


def make_compat_packer(page_size: int) -> PagePacker:
    """Make what packs each page as zlib's compress2() does in QEMU."""
    return Packer(ENGINE, page_size, LEVEL, exact=True)


def qemu_target(guest: Guest) -> QemuTarget:
    """Find out which QEMU dumps this guest.

    A live guest tells. An ELF core of 32-bit x86 may come from qemu-system-i386 or from qemu-system-x86_64,
    and nothing in it says so: it is taken for one of qemu-system-i386 if the CPU that its firmware describes
    knows no 64-bit mode. One of ppc64 is taken for one of the machine pseries.

    Raises
    ------
    CapabilityError
        QEMU 7.2 does not dump guests of this architecture, or the source is a dump with excluded pages.
    """
    target = TARGETS.get(guest.arch.name)
    if target is None:
        raise CapabilityError(f"compat: QEMU 7.2 dumps no guests of {guest.arch.name}")
    if guest.excluded_size:
        raise CapabilityError(
            f"compat: QEMU excludes no memory, and {guest.excluded_size} bytes of this source are excluded"
        )
    qemu = guest.qemu
    if guest.arch.name == "i386":
        is_64bit = qemu.target == "x86_64" if qemu else not _has_32bit_cpu(guest)
        return replace(target, uts_machine=TARGETS["x86_64"].uts_machine) if is_64bit else target
    if qemu and qemu.target == "ppc64" and not qemu.machine.startswith("pseries-"):
        return replace(target, page_size=TARGETS["ppc"].page_size)
    return target


def notes_of_qemu(guest: Guest) -> tuple[bytes, ByteOrder]:
    """Give a guest's notes and their byte order as its QEMU gives them, mistakes included."""
    if guest.qemu is None:
        return guest.notes, guest.byteorder
    return guest.qemu.notes, guest.qemu.byteorder


def _has_32bit_cpu(guest: Guest) -> bool:
    """Tell whether SMBIOS describes a CPU of a family that never had a 64-bit mode."""
    signature = _cpu_signature(guest)
    if signature is None:
        return False
    family, model = signature >> 8 & 0xF, signature >> 4 & 0xF | signature >> 12 & 0xF0
    # Family 6 begins with the Pentium Pro; model 15, Core 2, is the first with a 64-bit mode.
    return family < 6 or (family == 6 and model < 15)


def _cpu_signature(guest: Guest) -> int | None:
    """Read what CPUID leaf 1 gives in EAX from SMBIOS; None without SMBIOS."""
    try:
        area = guest.read(_SMBIOS_AREA, _SMBIOS_AREA_END - _SMBIOS_AREA)
        for at in range(0, len(area) - _ANCHOR_SIZE, 16):
            if area.startswith(_ANCHOR, at):
                length = int.from_bytes(area[at + 0x16 : at + 0x18], "little")
                table = guest.read(int.from_bytes(area[at + 0x18 : at + 0x1C], "little"), length)
                return _signature_in(table)
    except ReadError:
        pass
    return None


def _signature_in(table: bytes) -> int | None:
    at = 0
    while at + 4 <= len(table):
        size = table[at + 1]
        if table[at] == _PROCESSOR:
            return int.from_bytes(table[at + 8 : at + 12], "little")
        # Behind a structure are its strings, and behind the last one an empty one.
        end = table.find(b"\0\0", at + max(size, 4))
        if end < 0:
            break
        at = end + 2
    return None
