"""Architectures that need no more than their names and sizes."""

from __future__ import annotations

from vmdump.arch.base import Arch

__all__ = ["ARCHES"]

ARCHES = (
    Arch("ppc64", machine=21, uts_machine="ppc64", elf_class=64, byteorder="big", page_size=65536),
    Arch("ppc64le", machine=21, uts_machine="ppc64le", elf_class=64, byteorder="little", page_size=65536),
    Arch("ppc", machine=20, uts_machine="ppc", elf_class=32, byteorder="big"),
    Arch("s390x", machine=22, uts_machine="s390x", elf_class=64, byteorder="big"),
    Arch("riscv64", machine=243, uts_machine="riscv64", elf_class=64, byteorder="little"),
    Arch("riscv32", machine=243, uts_machine="riscv32", elf_class=32, byteorder="little"),
    Arch("loongarch64", machine=258, uts_machine="loongarch64", elf_class=64, byteorder="little"),
    Arch("mips", machine=8, uts_machine="mips", elf_class=32, byteorder="big"),
    Arch("mipsel", machine=8, uts_machine="mips", elf_class=32, byteorder="little"),
    Arch("mips64", machine=8, uts_machine="mips64", elf_class=64, byteorder="big"),
    Arch("mips64el", machine=8, uts_machine="mips64", elf_class=64, byteorder="little"),
)
