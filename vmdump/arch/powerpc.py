"""The register notes that 32-bit and 64-bit PowerPC share.

Source of the layouts: ``target/ppc/arch_dump.c`` of QEMU, after Linux' ``struct pt_regs`` and elf_fpregset_t,
elf_vrregset_t and elf_vsrreghalf_t (arch/powerpc/include/uapi/asm/ptrace.h and elf.h).
"""

from __future__ import annotations

from vmdump.arch.registers import NT_FPREGSET, RegisterNote, numbered, prstatus, wide, words
from vmdump.formats.layout import Field, Layout

__all__ = ["register_notes", "user_registers"]

_NT_PPC_VMX = 0x100
_NT_PPC_SPE = 0x101
_NT_PPC_VSX = 0x102
_REGISTERS_PADDING = 32


def user_registers(word: str) -> tuple[Field, ...]:
    """Give the fields of ``struct pt_regs``, of a type code for a ``long``."""
    named = (
        "nip",
        "msr",
        "orig_gpr3",
        "ctr",
        "link",
        "xer",
        "ccr",
        "softe",
        "trap",
        "dar",
        "dsisr",
        "result",
    )
    return (*numbered("gpr", word, 0, 32), *words(word, *named))


def register_notes(arch: str, word: str, others: tuple[Layout, ...] = ()) -> tuple[RegisterNote, ...]:
    """Describe the notes of an architecture.

    Parameters
    ----------
    arch : str
        Its name.
    word : str
        Type code of a ``long``.
    others : tuple of Layout
        Of NT_PRSTATUS by other writers.
    """
    # QEMU puts the head of the 64-bit structure in front of 32-bit registers, too.
    status = prstatus(arch, 8, user_registers(word), fpvalid=False, padding=_REGISTERS_PADDING)
    return (
        RegisterNote(status.name, status.type, status.layout, others=others, always=True),
        RegisterNote(
            b"CORE",
            NT_FPREGSET,
            Layout(f"{arch} FPREGSET note", (*numbered("fpr", "u8", 0, 32), Field("fpscr", word))),
        ),
        RegisterNote(
            b"CORE",
            _NT_PPC_VMX,
            Layout(
                f"{arch} VMX note",
                (
                    *wide("vr", 0, 32),
                    Field("pad_vscr", "V12"),
                    Field("vscr", "u4"),
                    Field("vrsave", "u4"),
                    Field("pad_vrsave", "V12"),
                ),
            ),
        ),
        # The other half of these registers are the floating-point registers.
        RegisterNote(b"CORE", _NT_PPC_VSX, Layout(f"{arch} VSX note", numbered("vsr", "u8", 0, 32, "_low"))),
        RegisterNote(
            b"CORE",
            _NT_PPC_SPE,
            Layout(
                f"{arch} SPE note",
                (*numbered("evr", "u4", 0, 32), Field("spe_acc", "u8"), Field("spefscr", "u4")),
            ),
        ),
    )
