"""What the pages of the synthetic guest look like, and where which kind of page lies.

There is a palette of template pages, and a map of 256 MiB that repeats through guest memory. A page is its
template with two words made from its frame number: generating memory is one gather and one scatter.
All randomness is splitmix64, written out here: numpy's own generators may change their streams, and importing
them takes 12 ms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.x86_64 import PAGE_OFFSET, START_KERNEL_MAP

__all__ = [
    "CODE_TEMPLATES",
    "EXTRA_TEMPLATES",
    "MAP_PAGES",
    "PAGE_SIZE",
    "REGION_PAGES",
    "Palette",
    "RawWords",
    "build_map",
]

PAGE_SIZE = 4096
REGION_PAGES = 512
"""Pages of 2 MiB: the granularity in which a guest leaves memory untouched."""
MAP_PAGES = 65536
"""Pages of the map: guests of a multiple of 256 MiB get their fill exactly."""

_PAGE_WORDS = PAGE_SIZE // 8
_SHORTEST_RUN, _LONGEST_RUN = 4, 64

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Indices = NDArray[np.intp]


def mix(words: Words) -> Words:
    """Hash 64-bit words to 64-bit words, one to one: the finaliser of splitmix64."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class RawWords:
    """The splitmix64 stream: the same in every numpy and on every machine.

    Parameters
    ----------
    seed : int
        Below 2**64.
    """

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed)
        self._used = 0

    def words(self, count: int) -> Words:
        """Give the next `count` uniform 64-bit words."""
        counter = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64)
        self._used += count
        return mix(counter * np.uint64(0x9E3779B97F4A7C15) + self._seed)

    def octets(self, count: int) -> Bytes:
        """Give `count` uniform bytes."""
        return self.words(-(-count // 8)).astype("<u8").view(np.uint8)[:count]

    def below(self, count: int, limit: int) -> Indices:
        """Give `count` numbers in ``[0, limit)``, uniform."""
        return (self.words(count) % np.uint64(limit)).astype(np.intp)

    def skewed(self, count: int, limit: int) -> Indices:
        """Give `count` numbers in ``[0, limit)``, half of them below ``limit / 4``; limit < 2**32."""
        uniform = self.words(count) >> np.uint64(48)
        return (uniform * uniform * np.uint64(limit) >> np.uint64(32)).astype(np.intp)


# Lines with holes: % is any decimal digit, # any hexadecimal one, @ any letter.
_LINES = (
    "[    0.4%%%%%] pci 0000:00:1%.0: [8086:####] type 00 class 0x0#0#00\n",
    "1%%%,20%%%,user%%%@example.org,########,%%.00\n",
    '192.168.10.%% - - [14/Nov/2022:13:%%:%% +0000] "GET /static/@@@@@@@.html HTTP/1.1" 200 15%%\n',
    "ffffffff814##### t @@@@@_get_@@@@\nffffffff814##### T @@@@_init\n",
    "Nov 14 09:23:%% node-01 systemd[1]: Started @@@@@@-manager.service - Run the @@@@@@ manager.\n",
    "# The maximum number of @@@@@@@ in a @@@@@@@; the default is %%.\n",
    "\tif (@@@->@@@@@@ == NULL)\n\t\treturn -EINVAL;\n\n\tspin_lock(&@@@@@->lock);\n",
    "Nov 14 09:24:%% node-01 sshd[21%%]: Accepted publickey for @@@@@ from 192.168.10.%% port 5%%%% ssh2\n",
    '@@@@@@_timeout = %%%%\n@@@@_directory = "/var/lib/@@@@@@/cache"\n\n[@@@@@@@]\nenabled = true\n',
    '{"id": 114%%%, "name": "@@@@@@@", "state": "running", "uuid": "####4b2a-10c7-####"}\n',
    "[   12.5%%%%%] EXT4-fs (vda1): mounted filesystem with ordered data mode. Quota mode: none.\n",
    "Nov 14 09:25:%% node-01 kernel: [ 5123.%%%%%%] @@@@%: renamed from eth0\n",
)
# Instructions, the frequent ones first, with holes: RR is a ModRM byte of two registers, MM one of register
# and memory, DD a small displacement, JJ an arbitrary byte, SS a sign extension.
_INSTRUCTIONS = """
488bMMDD 4889RR 4889MMDD e8JJJJDDSS 4885c074DD 8bMMDD 75DD 31c0 488dMMDD c3 89RR 85c00f84JJDD0000 ebDD
415741564155415455534883ecDD 4883c4DD5b5d415c415d415e415fc3 488b05JJJJDD00 0fb6RR 4c89RR
66662e0f1f840000000000 488b47DD488b4008 488d35JJJJDD00 be01000000 4883c4085b5dc3 4883MMDD01 4839RR
c744DDDDDD000000 0f85JJDD0000 660f1f440000 f20f10MMDD 48c7MMDD00000000 65488b0425DD000000 b8JJDD0000
"""


def _fillings() -> dict[str, Indices]:
    """Build the table of what a random byte becomes in each kind of hole."""
    octet = np.arange(256)
    skewed = octet * octet
    digits = np.array([*b"0123456789abcdef"])
    letters = np.array([*b"etaoinsrhldcumfpgwybvkxjqz"])
    return {
        "%": digits[octet * 10 >> 8],
        "#": digits[octet >> 4],
        "@": letters[skewed * len(letters) >> 16],
        "RR": 0xC0 + (skewed * 64 >> 16),
        "MM": 0x40 + (skewed * 64 >> 16),
        "DD": 8 * (skewed * 16 >> 16),
        "JJ": octet,
        "SS": 0xFF * (octet >> 7),
    }


def _join(
    raw: RawWords,
    templates: Sequence[Sequence[str]],
    literal: Callable[[str], int],
    *,
    repeats: int,
    size: int,
) -> Bytes:
    """Join templates to `size` bytes, each up to `repeats` times in a row, and fill their holes.

    A template is a sequence of tokens, one per byte; `literal` gives the byte of a token that is not a hole.
    """
    fillings = _fillings()
    table = np.stack((np.zeros(256, np.intp), *fillings.values())).astype(np.uint8).ravel()
    rows = {hole: row for row, hole in enumerate(fillings, start=1)}
    tokens = [token for template in templates for token in template]
    literals = np.array([0 if token in rows else literal(token) for token in tokens], np.uint8)
    holes = np.array([rows.get(token, 0) << 8 for token in tokens], np.uint16)

    lengths = np.array([len(template) for template in templates])
    starts = np.cumsum(lengths) - lengths
    picks = raw.skewed(size // int(lengths.mean() * (1 + repeats / 3)), len(templates))
    picks = np.repeat(picks, 1 + raw.skewed(len(picks), repeats))
    picked = lengths[picks]
    position = np.arange(picked.sum()) + np.repeat(starts[picks] - np.cumsum(picked) + picked, picked)
    position = np.resize(position, size)
    # The literal of a hole is zero, and so is the row of the table for what is not a hole.
    filled: Bytes = literals[position] | table[holes[position] | raw.octets(size)]
    return filled


def _text(raw: RawWords, pages: int) -> Bytes:
    """Kernel and system logs, tables, configuration, source code."""
    return _join(raw, _LINES, ord, repeats=15, size=pages * PAGE_SIZE)


def _code(raw: RawWords, pages: int) -> Bytes:
    """Machine code: the instructions that compilers write most."""
    instructions = [re.findall("..", instruction) for instruction in _INSTRUCTIONS.split()]
    return _join(raw, instructions, lambda octet: int(octet, 16), repeats=2, size=pages * PAGE_SIZE)


def _objects(raw: RawWords, pages: int) -> Bytes:
    """Slabs of equal objects: pointers into the heap, list heads, function tables, small numbers, zeros."""
    shape = (pages, _PAGE_WORDS)
    count = pages * _PAGE_WORDS
    object_words = np.array((8, 12, 16, 24, 32, 64))[raw.below(pages, 6)][:, None]
    word = np.arange(_PAGE_WORDS)[None, :]
    member = word % object_words
    page_address = PAGE_OFFSET + (raw.words(pages) >> np.uint64(42) << np.uint64(12))[:, None]
    heap = PAGE_OFFSET + (raw.words(count) >> np.uint64(40) << np.uint64(6)).reshape(shape)
    following = page_address + ((word + object_words) * 8 % PAGE_SIZE).astype(np.uint64)
    itself = page_address + (word * 8).astype(np.uint64)
    function = START_KERNEL_MAP + (raw.words(pages * 64) >> np.uint64(40) << np.uint64(4)).reshape(pages, 64)
    number = raw.skewed(count, 512).reshape(shape).astype(np.uint64)
    role = raw.below(pages * 64, 16).reshape(pages, 64)
    rows = np.arange(pages)[:, None]
    zero = np.zeros(shape, np.uint64)
    by_role = (zero,) * 6 + (number,) * 4 + (heap,) * 2 + (following, itself) + (function[rows, member],) * 2
    words: Words = np.choose(role[rows, member], by_role).astype("<u8")
    return words.view(np.uint8).ravel()


def _sparse(raw: RawWords, pages: int) -> Bytes:
    """Pages that are zero but for a few words, such as page tables and fresh allocations."""
    words = np.zeros((pages, _PAGE_WORDS), "<u8")
    places = raw.skewed(pages * 16, _PAGE_WORDS).reshape(pages, 16)
    values = (raw.words(pages * 16) >> np.uint64(44) << np.uint64(12)) | np.uint64(0x67)
    words[np.arange(pages)[:, None], places] = values.reshape(pages, 16)
    return words.view(np.uint8).ravel()


def _compressed(raw: RawWords, pages: int) -> Bytes:
    """Output of an LZ compressor: nothing repeats, but bytes are not equally frequent."""
    octets = raw.octets(pages * PAGE_SIZE)
    octets[::4] >>= 3
    return octets


def _random(raw: RawWords, pages: int) -> Bytes:
    """Encrypted pages, and what an entropy coder leaves."""
    return raw.octets(pages * PAGE_SIZE)


# Style 0 is for pages that stay as they are.
_PRINTABLE, _ADDRESS, _HASH = 1, 2, 3
_STAMP_WORD, _STAMP_STEP = 5, 256
_ODD_48 = 0x9E3779B97F4B


@dataclass(frozen=True)
class _Kind:
    build: Callable[[RawWords, int], Bytes]
    templates: int
    percent: int
    style: int


# Of the data pages, zlib 1 leaves 0.42 and LZO 0.51; of a real guest's 4 KiB pages they left 0.42 and 0.52.
_KINDS = (
    _Kind(_text, 128, 26, _PRINTABLE),
    _Kind(_code, 128, 24, _HASH),
    _Kind(_objects, 128, 24, _ADDRESS),
    _Kind(_sparse, 64, 13, _ADDRESS),
    _Kind(_compressed, 64, 6, _HASH),
    _Kind(_random, 64, 7, _HASH),
)
# Template 0 is the zero page.
_FIRST_TEMPLATES = tuple(1 + sum(kind.templates for kind in _KINDS[:at]) for at in range(len(_KINDS)))
EXTRA_TEMPLATES = 1 + sum(kind.templates for kind in _KINDS)
CODE_TEMPLATES = range(_FIRST_TEMPLATES[1], _FIRST_TEMPLATES[2])


class Palette:
    """The template pages, and the making of pages from them. Read-only: threads may share it.

    Parameters
    ----------
    raw : RawWords
        Advanced.
    extra : (n, 4096) uint8
        Pages that are used as they are; the first one becomes template `EXTRA_TEMPLATES`.
    """

    def __init__(self, raw: RawWords, extra: Bytes) -> None:
        parts = [
            np.zeros(PAGE_SIZE, np.uint8),
            *(kind.build(raw, kind.templates) for kind in _KINDS),
            extra.ravel(),
        ]
        self._templates = np.concatenate(parts).reshape(-1, PAGE_SIZE)
        self._styles = np.zeros(len(self._templates), np.uint8)
        for first, kind in zip(_FIRST_TEMPLATES, _KINDS, strict=True):
            self._styles[first : first + kind.templates] = kind.style

    def generate(self, pfns: Words, templates: NDArray[np.uint16], out: Bytes) -> None:
        """Make pages.

        Parameters
        ----------
        pfns : (n,) uint64
            Frame numbers.
        templates : (n,) uint16
            The template of each.
        out : (n, 4096) uint8, C-contiguous
            Overwritten.
        """
        # With the default mode="raise" numpy gathers into a buffer of its own first.
        np.take(self._templates, templates, axis=0, out=out, mode="clip")
        styles = self._styles[templates]
        stamped = np.flatnonzero(styles)
        stamps = np.choose(styles[stamped] - 1, _stamps(pfns[stamped]))
        out.view("<u8")[stamped, _STAMP_WORD::_STAMP_STEP] = stamps[:, None]


def _stamps(pfns: Words) -> tuple[Words, ...]:
    """Give one word per frame number in each style, never the same for two frames below 2**48."""
    shifts = np.arange(0, 48, 6, dtype=np.uint64)
    sextets = (pfns * np.uint64(_ODD_48))[:, None] >> shifts & np.uint64(63)
    printable = (sextets + np.uint64(ord("0"))).astype(np.uint8).view("<u8").ravel().astype(np.uint64)
    return printable, np.uint64(PAGE_OFFSET) + (pfns << np.uint64(12)), mix(pfns)


def build_map(raw: RawWords, fill: float) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Decide which template lies where.

    Parameters
    ----------
    raw : RawWords
        Advanced.
    fill : float
        Share of the pages that hold data, 0 to 1.

    Returns
    -------
    templates : (MAP_PAGES,) uint16
        Runs of one kind, 4 to 64 pages long, with runs of zero pages between them.
    touched : (MAP_PAGES / REGION_PAGES,) bool
        False for the regions the guest never touched, half of what is not data; never the first or the last.
    """
    regions = np.arange(MAP_PAGES // REGION_PAGES)
    holes = round(len(regions) * (1 - fill) / 2)
    # Spread evenly, so that a part of the map holds the same share of data as the whole.
    touched = (regions * holes + len(regions) - 1) % len(regions) >= holes
    data = round(MAP_PAGES * fill)
    zeros = int(touched.sum()) * REGION_PAGES - data

    runs = data // _SHORTEST_RUN + 1
    lengths = _SHORTEST_RUN + raw.below(runs, _LONGEST_RUN - _SHORTEST_RUN + 1)
    data_ends = np.minimum(np.cumsum(lengths), data)
    zero_ends = data_ends * zeros // max(data, 1)
    shares = np.repeat(np.arange(len(_KINDS)), [kind.percent for kind in _KINDS])
    shuffled = shares[np.argsort(raw.words(len(shares)), kind="stable")]
    kinds = np.repeat(np.resize(shuffled, runs), np.diff(data_ends, prepend=0))
    zero_ends[-1] = zeros

    counts = np.array([kind.templates for kind in _KINDS])
    chosen = np.array(_FIRST_TEMPLATES)[kinds] + raw.below(data, 1 << 32) % counts[kinds]
    run_lengths = np.stack((np.diff(data_ends, prepend=0), np.diff(zero_ends, prepend=0)), axis=1).ravel()
    is_data = np.repeat(np.arange(2 * runs) % 2 == 0, run_lengths)
    touched_pages = np.flatnonzero(np.repeat(touched, REGION_PAGES))
    templates = np.zeros(MAP_PAGES, np.uint16)
    templates[touched_pages[is_data]] = chosen
    return templates, touched
