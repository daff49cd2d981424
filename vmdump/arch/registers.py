"""Register notes: which notes a vCPU has, and the way from their bytes to registers by name and back."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from vmdump.errors import FormatError, RequestError
from vmdump.formats.layout import ByteOrder, Field, Layout
from vmdump.formats.notes import NT_PRSTATUS, build_note, iter_notes

__all__ = [
    "NT_FPREGSET",
    "RegisterNote",
    "Registers",
    "build_cpus",
    "numbered",
    "parse_cpus",
    "prstatus",
    "wide",
    "words",
]

NT_FPREGSET = 2
MAX_CPUS = 8192
"""Linux has at most 8192, QEMU 4096."""
_CORE = b"CORE"
_FIRST_OF_LINUX = 0x100
_PID = "pid"
_WIDE = 128


def words(code: str, *names: str) -> tuple[Field, ...]:
    """Give fields of one type code."""
    return tuple(Field(name, code) for name in names)


def numbered(prefix: str, code: str, begin: int, end: int, suffix: str = "") -> tuple[Field, ...]:
    """Give the fields of a register file, ``prefix{begin}suffix`` to ``prefix{end - 1}suffix``."""
    return words(code, *(f"{prefix}{number}{suffix}" for number in range(begin, end)))


def wide(prefix: str, begin: int, end: int) -> tuple[Field, ...]:
    """Give the fields of a file of 128-bit registers."""
    return numbered(prefix, f"V{_WIDE // 8}", begin, end)


@dataclass(frozen=True)
class RegisterNote:
    """A note that holds registers of one vCPU.

    Attributes
    ----------
    name : bytes
        As QEMU writes it. From type 0x100 on, ``CORE`` and ``LINUX`` are equal when reading.
    type : int
        Its number under that name.
    layout : Layout
        Of the descriptor. Fields called ``pad...`` are padding; those of a code ``V...`` are registers
        wider than 64 bits. A shorter descriptor has the registers that fit into it.
    others : tuple of Layout
        Layouts of other writers, told by their size; only read.
    constants : tuple of (str, int)
        Fields that are not registers, and what is written there. Nor is ``pid``, the number of the vCPU,
        from 1.
    always : bool
        It is written even where none of its registers is given.
    apart : bool
        It follows all notes that are not apart, in the order of the vCPUs.
    """

    name: bytes
    type: int
    layout: Layout
    others: tuple[Layout, ...] = ()
    constants: tuple[tuple[str, int], ...] = ()
    always: bool = False
    apart: bool = False

    def layout_of(self, desc: bytes, byteorder: ByteOrder) -> Layout:
        """Give the layout of a descriptor that was read."""
        return next((other for other in self.others if other.size == len(desc)), self.layout)

    def layout_for(self, registers: Mapping[str, int]) -> Layout | None:
        """Give the layout for writing these registers; None if the note is not needed for them."""
        return self.layout if self.always or not self.names.isdisjoint(registers) else None

    def constants_for(self, registers: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """Give what is written into the fields that are not registers, beside these registers."""
        return self.constants

    def wide_order(self, byteorder: ByteOrder) -> ByteOrder:
        """Tell the byte order of registers wider than 64 bits."""
        return byteorder

    @cached_property
    def names(self) -> frozenset[str]:
        """The registers it can hold."""
        return frozenset(register_names(self.layout, self.constants))

    def unpack(self, desc: bytes, byteorder: ByteOrder) -> dict[str, int]:
        """Give the registers in a descriptor, in the order of the layout."""
        layout = self.layout_of(desc, byteorder)
        dtype = layout.dtype(byteorder)
        assert dtype.fields is not None
        record = np.frombuffer(desc[: dtype.itemsize].ljust(dtype.itemsize, b"\0"), dtype)[0]
        values = {}
        for name in register_names(layout, self.constants):
            kind, offset = dtype.fields[name][:2]
            if offset + kind.itemsize <= len(desc):
                value = record[name].item()
                wide = isinstance(value, bytes)
                values[name] = int.from_bytes(value, self.wide_order(byteorder)) if wide else value
        return values

    def pack(self, layout: Layout, cpu: int, registers: Mapping[str, int], byteorder: ByteOrder) -> bytes:
        """Build the note of a vCPU; registers that are not given are zero.

        Raises
        ------
        RequestError
            A value does not fit its register.
        """
        values: dict[str, int | bytes] = dict(self.constants_for(registers))
        for field in layout.fields:
            if field.name == _PID:
                values[_PID] = cpu + 1
            elif field.name in registers and field.name not in values and not field.name.startswith("pad"):
                value = operator.index(registers[field.name])
                size = int(field.code[1:])
                if not 0 <= value < 1 << 8 * size:
                    raise RequestError(
                        f"cpus: {field.name} of vCPU {cpu} is {value:#x}, and it has {8 * size} bits",
                        parameter="cpus",
                    )
                is_wide = field.code.startswith("V")
                values[field.name] = value.to_bytes(size, self.wide_order(byteorder)) if is_wide else value
        return build_note(self.name, self.type, layout.pack(byteorder, **values), byteorder)


@cache
def register_names(layout: Layout, constants: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """Name the fields that are registers."""
    others = {_PID, *(name for name, _ in constants)}
    return tuple(
        field.name for field in layout.fields if field.name not in others and not field.name.startswith("pad")
    )


def prstatus(
    arch: str, word: int, fields: Sequence[Field], *, fpvalid: bool, padding: int = 0
) -> RegisterNote:
    """Describe NT_PRSTATUS: Linux' ``struct elf_prstatus`` around an architecture's registers.

    What only a process has, signals and times above all, is padding: no hypervisor knows it.

    Parameters
    ----------
    arch : str
        Its name.
    word : int
        Bytes of a ``long``: 4 or 8.
    fields : sequence of Field
        The registers, ``pr_reg``.
    fpvalid : bool
        pr_fpvalid is 1, not 0.
    padding : int
        Bytes of ``pr_reg`` behind the registers.
    """
    # siginfo and pending signals; then ppid, pgrp, sid and four times of two words each.
    head = (
        Field("pad_signals", f"V{16 + 2 * word}"),
        Field(_PID, "u4"),
        Field("pad_times", f"V{12 + 8 * word}"),
    )
    tail = [Field("pad_registers", f"V{padding}")] if padding else []
    tail.append(Field("fpvalid" if fpvalid else "pad_fpvalid", "u4"))
    if word == 8:
        tail.append(Field("pad_end", "V4"))
    return RegisterNote(
        _CORE,
        NT_PRSTATUS,
        Layout(f"{arch} PRSTATUS note", (*head, *fields, *tail)),
        constants=(("fpvalid", 1),) if fpvalid else (),
        always=True,
    )


class Registers(Mapping[str, int]):
    """The registers of one vCPU by name, read out of its notes when they are first asked for.

    Parameters
    ----------
    parts : sequence of (RegisterNote, bytes)
        Its notes' descriptors. Where two have a register of the same name, the later one counts.
    byteorder : str
        Of the notes.
    """

    __slots__ = ("_byteorder", "_parts", "_values")

    def __init__(self, parts: Sequence[tuple[RegisterNote, bytes]], byteorder: ByteOrder) -> None:
        self._parts = parts
        self._byteorder = byteorder
        self._values: dict[str, int] | None = None

    def _read(self) -> dict[str, int]:
        if self._values is None:
            values: dict[str, int] = {}
            for kind, desc in self._parts:
                values |= kind.unpack(desc, self._byteorder)
            self._values = values
        return self._values

    def __getitem__(self, name: str) -> int:
        """Give the value of a register, an unsigned number."""
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        """Name the registers in the order of the notes."""
        return iter(self._read())

    def __len__(self) -> int:
        """Count the registers."""
        return len(self._read())

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: {value:#x}" for name, value in self.items()) + "}"


def _key(name: bytes, kind: int) -> tuple[bytes, int]:
    # QEMU calls PowerPC's vector registers CORE, Linux LINUX; below, only CORE has registers.
    return (_CORE if name == b"LINUX" and kind >= _FIRST_OF_LINUX else name), kind


def parse_cpus(
    kinds: Sequence[RegisterNote], notes: bytes, byteorder: ByteOrder
) -> tuple[Mapping[str, int], ...]:
    """Find the registers of each vCPU in the notes of a dump: an NT_PRSTATUS begins a vCPU.

    Raises
    ------
    FormatError
        A note is longer than the notes, or there are more vCPUs than any guest has.
    """
    known = {_key(kind.name, kind.type): kind for kind in kinds}
    cpus: list[list[tuple[RegisterNote, bytes]]] = []
    apart: dict[RegisterNote, list[bytes]] = {}
    for note in iter_notes(notes, byteorder):
        key = _key(note.name, note.type)
        if key == (_CORE, NT_PRSTATUS):
            if len(cpus) == MAX_CPUS:
                raise FormatError(f"the notes are of more than {MAX_CPUS} vCPUs, which no guest has")
            cpus.append([])
        kind = known.get(key)
        if kind is not None and kind.apart:
            apart.setdefault(kind, []).append(note.desc)
        elif kind is not None and cpus:
            cpus[-1].append((kind, note.desc))
    for kind, descs in apart.items():
        for parts, desc in zip(cpus, descs, strict=False):
            parts.append((kind, desc))
    return tuple(Registers(parts, byteorder) for parts in cpus)


def build_cpus(
    kinds: Sequence[RegisterNote], cpus: Sequence[Mapping[str, int]], byteorder: ByteOrder
) -> bytes:
    """Build the notes of all vCPUs in the order in which QEMU writes them.

    Raises
    ------
    RequestError
        A register has no place in the notes, or a value does not fit its register.
    """
    if not kinds:
        raise RequestError("cpus: no register notes are known for this architecture", parameter="cpus")
    names = frozenset[str]().union(*(kind.names for kind in kinds))
    for index, registers in enumerate(cpus):
        unknown = [name for name in registers if name not in names]
        if unknown:
            raise RequestError(
                f"cpus: vCPU {index} has a register {unknown[0]!r}, for which no note of the architecture "
                f"has a place; there are {', '.join(sorted(names))}",
                parameter="cpus",
            )

    def build(apart: bool) -> Iterator[bytes]:
        for index, registers in enumerate(cpus):
            for kind in kinds:
                layout = kind.layout_for(registers) if kind.apart == apart else None
                if layout is not None:
                    yield kind.pack(layout, index, registers, byteorder)

    return b"".join((*build(False), *build(True)))
