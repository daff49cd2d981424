"""The words that a QEMU was started with: its options, and what they say."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise

from vmdump.errors import RequestError
from vmdump.units import parse_size

__all__ = ["is_emulator", "memory_size", "options", "settings", "target"]

# Of NixOS: .qemu-system-x86_64-wrapped. Not qemu-img, nor qemu-aarch64, which runs programs.
_PROGRAM = re.compile(r"\.?(?:qemu-system-(\w+)|qemu-kvm|kvm|qemu)(?:-wrapped)?")
_DEFAULT_MEMORY = 128 << 20
"""Bytes, of most machines."""


def is_emulator(words: Sequence[str]) -> bool:
    """Tell whether a command line is that of a QEMU with a machine; libvirt's questions have none."""
    if not words or not _PROGRAM.fullmatch(os.path.basename(words[0])):
        return False
    machines = [
        settings(value, "type").get("type", "") for name, value in options(words) if _is_machine(name)
    ]
    return machines[-1:] != ["none"]


def _is_machine(name: str) -> bool:
    return name in ("machine", "M")


def target(words: Sequence[str]) -> str:
    """Give the architecture of a QEMU, ``x86_64`` of qemu-system-x86_64; empty where its name tells none."""
    match = _PROGRAM.fullmatch(os.path.basename(words[0]))
    return (match[1] or "") if match else ""


def memory_size(words: Sequence[str]) -> int:
    """Give the size of the guest's memory in bytes, without what can be plugged in; 0 if it is not told."""
    text = ""
    for name, value in options(words):
        if name == "m":
            text = settings(value, "size").get("size", "")
    if not text:
        return _DEFAULT_MEMORY
    with suppress(RequestError):
        # QEMU takes a bare number for MiB, the suffixes as usual.
        return parse_size(f"{text}M" if text.isdecimal() else text)
    return 0


def options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give options with the word behind them; QEMU takes one or two dashes."""
    for word, value in pairwise([*words[1:], ""]):
        if word.startswith("-"):
            yield word.removeprefix("-").removeprefix("-"), value


def settings(text: str, first: str) -> dict[str, str]:
    """Read ``NAME,key=value,...``, or the same as JSON; `first` is the key that may be left out.

    Examples
    --------
    >>> settings("unix:/run/a,,b.qmp,server=on,nowait", "device")
    {'device': 'unix:/run/a,b.qmp', 'server': 'on', 'nowait': 'on'}
    """
    if text.startswith("{"):
        with suppress(ValueError):
            return {str(name): str(value) for name, value in json.loads(text).items()}
        return {}
    found = {}
    # A comma inside a value is doubled.
    for index, part in enumerate(text.replace(",,", "\0").split(",")):
        name, equals, value = part.replace("\0", ",").partition("=")
        if index == 0 and (not equals or not name.replace("-", "_").isidentifier()):
            found[first] = part.replace("\0", ",")
        elif equals:
            found[name] = value
        elif name:
            found[name] = "on"
    return found
