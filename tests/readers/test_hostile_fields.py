"""Each field of each header of each kind of dump, with numbers it should not have; each length of the file.

What comes out must be an error of vmdump's own, or answers: `hostile.touch` lets nothing else through.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers.hostile import as_file, touch
from oracles.small_dumps import BLOCKS, SmallDump, all_kinds, content, split_set

import vmdump
from vmdump.errors import VmdumpError

KINDS = {dump.name: dump for dump in all_kinds()}
CORPORA = Path(__file__).parents[1] / "fuzz" / "corpora"


def values(width: int, size: int) -> tuple[int, ...]:
    """Give what a field may be made to say: nothing, the edges of its width, the edges of the file."""
    top = (1 << 8 * width) - 1
    return (
        0,
        1,
        top,
        top >> 1,
        (top >> 1) + 1,
        top - 4095 & top,
        size & top,
        size - 1 & top,
        1 << 8 * width - 4,
    )


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("lime", "avml")])
def test_as_it_should_be(name: str) -> None:
    """Each of these files is read before it is damaged: else only the first check would be tested."""
    with as_file(KINDS[name].data) as path, vmdump.open(path) as dump:
        for low, high in BLOCKS:
            for pfn in range(low, high):
                assert dump.pages(pfn, 1).tobytes() == content(pfn)


@pytest.mark.parametrize("name", KINDS)
def test_each_field(name: str) -> None:
    dump = KINDS[name]
    refused = 0
    for field in dump.fields:
        for value in values(field.width, len(dump.data)):
            refused += bool(touch(dump.changed(field, value)))
    assert refused


@pytest.mark.parametrize("name", KINDS)
def test_two_fields(name: str) -> None:
    """Two fields at once, as an offset and a size that only together are wrong."""
    dump = KINDS[name]
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(60):
        first, second = rng.sample(dump.fields, 2)
        data = dump.changed(first, rng.choice(values(first.width, len(dump.data))))
        changed = SmallDump(dump.name, dump.order, bytearray(data))
        touch(changed.changed(second, rng.choice(values(second.width, len(dump.data)))))


def lengths(dump: SmallDump) -> list[int]:
    """Give every length up to the end of the first headers, and some behind and in front of each field."""
    edges = {field.offset + step for field in dump.fields for step in (-1, 0, 1, field.width)}
    return sorted(
        {*range(0, 200, 3), *edges, len(dump.data) - 1, len(dump.data) // 2} & set(range(len(dump.data)))
    )


@pytest.mark.parametrize("name", KINDS)
def test_each_length(name: str) -> None:
    dump = KINDS[name]
    for length in lengths(dump):
        assert touch(dump.data[:length]), length


@pytest.mark.parametrize("name", KINDS)
def test_flipped_bytes(name: str) -> None:
    dump = KINDS[name]
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(60):
        data = bytearray(dump.data)
        for _ in range(rng.choice((1, 2, 8, 64))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        touch(data)


def test_split_set() -> None:
    """One part of a set is damaged, or the parts do not belong together."""
    first, second = split_set()
    try:
        with as_file(first.data) as one, as_file(second.data) as two, vmdump.open([one, two]) as dump:
            assert dump.pages(8, 1).tobytes() == content(8)
    except TypeError:
        pytest.skip("one file at a time")
    for field in second.fields:
        for value in values(field.width, len(second.data)):
            touch(first.data, second.changed(field, value))
            touch(second.changed(field, value), first.data)
    for parts in ((first, first), (second, second), (first,), (second,), (first, second, second)):
        assert touch(*(part.data for part in parts))


@pytest.mark.parametrize("target", ["elf", "kdump", "flattened", "ranges"])
def test_corpora(target: str) -> None:
    """What the fuzz targets start from, and what they have found, written out again too."""
    files = sorted((CORPORA / target).iterdir())
    assert files
    for file in files:
        touch(file.read_bytes(), convert=True)


def test_errors_are_one_line_with_a_file() -> None:
    """The error says which file it is about."""
    dump = KINDS["kdump64lev6"]
    field = next(field for field in dump.fields if field.name == "bitmap_blocks")
    with as_file(dump.changed(field, 0xFFFFFFFE)) as path, pytest.raises(VmdumpError, match=path):
        vmdump.open(path)
