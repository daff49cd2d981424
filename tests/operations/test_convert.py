"""Every format to every other and back: the same pages, notes and VMCOREINFO, in the eyes of the oracles."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from helpers.converting import held, opened, parts, write
from helpers.running import RunningGuest, noise
from oracles import elf_builder, holdings, judges
from oracles.holdings import Holdings
from oracles.kdump import CODEC_FLAGS, Kdump

import vmdump
from vmdump import errors

PAGE = 4096
VMCOREINFO = b"""OSRELEASE=6.1.0-test
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffffffff82610000
KERNELOFFSET=0
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
"""
KINDS = [
    "elf",
    *(f"kdump-{codec} {layout}" for codec in CODEC_FLAGS for layout in ("standard", "flattened")),
    "kdump-zstd split",
]


def prstatus(cpu: int) -> bytes:
    return elf_builder.note(b"CORE", 1, struct.pack("<32xI300x", cpu + 1))


@pytest.fixture(scope="module")
def guest() -> tuple[vmdump.BlockSource, Holdings]:
    """Zeros, pages that shrink, pages that do not and pages of the same contents, in three blocks."""
    random = np.random.default_rng(31)
    text = np.frombuffer((b"crash> bt -a  PID: 1 TASK: ffff888003a58000\n" * 9000)[: 90 * PAGE], np.uint8)
    noise = random.integers(0, 256, 40 * PAGE, np.uint8)
    low = np.concatenate((np.zeros(70 * PAGE, np.uint8), text, noise, text[:PAGE], np.zeros(PAGE, np.uint8)))
    middle = np.tile(np.arange(PAGE // 8, dtype="<u8").view(np.uint8), 50)
    high = np.concatenate((noise[::-1], np.zeros(30 * PAGE, np.uint8), text[::-1]))
    blocks = [(0x10_0000, low), (0x4000_0000, middle), (0x1_0000_0000, high)]
    notes = prstatus(0) + prstatus(1) + elf_builder.note(b"VMCOREINFO", 0, VMCOREINFO)
    source = vmdump.BlockSource(blocks, notes=notes)
    pages = {
        (start + at) // PAGE: memory[at : at + PAGE].tobytes()
        for start, memory in blocks
        for at in range(0, len(memory), PAGE)
    }
    return source, Holdings(pages, set(), notes, VMCOREINFO)


def checked(path: Path, kind: str) -> Holdings:
    if kind.endswith("standard"):
        Kdump(path).check()
    return held(path, kind)


@pytest.fixture(scope="module")
def dumps(
    guest: tuple[vmdump.BlockSource, Holdings], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Give the guest as each kind."""
    folder = tmp_path_factory.mktemp("dumps")
    made = {}
    for kind in KINDS:
        made[kind] = folder / kind.replace(" ", "-")
        write(guest[0], made[kind], kind)
        assert checked(made[kind], kind) == guest[1]
    return made


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_there_and_back(
    here: str, there: str, dumps: dict[str, Path], guest: tuple[vmdump.BlockSource, Holdings], tmp_path: Path
) -> None:
    report = write(opened(dumps[here], here), tmp_path / "there", there, threads=2)
    assert checked(tmp_path / "there", there) == guest[1]
    same_codec = here.split()[0] == there.split()[0] != "elf"
    assert report.copied_pages == (report.plain_pages + report.compressed_pages if same_codec else 0)
    write(opened(tmp_path / "there", there), tmp_path / "back", here, threads=1)
    assert checked(tmp_path / "back", here) == guest[1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith("flattened")])
def test_in_the_eyes_of_other_people(
    kind: str, dumps: dict[str, Path], guest: tuple[vmdump.BlockSource, Holdings], scratch: Path
) -> None:
    """drgn and libkdumpfile read what was an LZO dump; a split set after makedumpfile has reassembled it."""
    write(dumps["kdump-lzo flattened"], scratch / "guest", kind)
    path = scratch / "guest"
    if kind.endswith("split"):
        judges.makedumpfile_reassemble(parts(path), path)
        assert holdings.of_kdump(path) == guest[1]
    ranges = [(pfn * PAGE, PAGE) for pfn in guest[1].pages]
    assert judges.drgn_read(path, ranges) == list(guest[1].pages.values())
    assert judges.libkdumpfile_read(path, ranges) == list(guest[1].pages.values())


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an ELF core in which makedumpfile finds a kernel."""
    path = tmp_path_factory.mktemp("synthetic") / "elf"
    vmdump.dump("synthetic:24M?seed=5&fill=0.5", path, format="elf")
    return path


def test_a_set_of_makedumpfile(synthetic: Path, scratch: Path) -> None:
    made = [scratch / f"theirs.{number}" for number in (1, 2, 3)]
    judges.makedumpfile_split(synthetic, made, "-l", "-d", "0")
    report = vmdump.convert(made[::-1], scratch / "one", format="kdump-lzo")
    assert report.copied_pages == report.plain_pages + report.compressed_pages > 0
    assert holdings.of_kdump(scratch / "one").pages == holdings.of_elf(synthetic).pages


@pytest.mark.parametrize("layout", ["standard", "flattened"])
def test_copied_pages_are_the_same_bytes(layout: str, dumps: dict[str, Path], tmp_path: Path) -> None:
    """What is stored of each page does not change, and pages that shared their bytes still do."""
    vmdump.convert(dumps[f"kdump-zlib {layout}"], tmp_path / "copy", format="kdump-zlib", layout="standard")
    before, after = Kdump(dumps["kdump-zlib standard"]), Kdump(tmp_path / "copy").check()
    for name in ("size", "flags"):
        assert (before.descriptors[name] == after.descriptors[name]).all()
    for old, new in zip(before.descriptors.tolist(), after.descriptors.tolist(), strict=True):
        assert before.data_at(old[0], old[1]) == after.data_at(new[0], new[1])
    assert len(np.unique(before.descriptors["offset"])) == len(np.unique(after.descriptors["offset"]))


@pytest.mark.parametrize("codec", ["zlib", "lzo"])
def test_a_named_engine_packs_all(codec: str, dumps: dict[str, Path], tmp_path: Path) -> None:
    engine = {"zlib": "zlib", "lzo": "python-lzo"}[codec]
    report = vmdump.convert(
        dumps[f"kdump-{codec} standard"], tmp_path / "new", format=f"kdump-{codec}", engine=engine
    )
    assert report.engine == engine
    assert report.copied_pages == 0
    level = 1 if report.level is None else report.level
    again = vmdump.convert(tmp_path / "new", tmp_path / "level", format=f"kdump-{codec}", level=level)
    assert again.copied_pages == 0


def test_plain_pages_of_an_uncompressed_dump_are_packed(synthetic: Path, scratch: Path) -> None:
    judges.makedumpfile_filter(synthetic, scratch / "plain", "-d", "0")
    assert Kdump(scratch / "plain").codec_flag == 0
    report = vmdump.convert(scratch / "plain", scratch / "packed", format="kdump-lzo")
    assert report.copied_pages == 0
    assert report.compressed_pages > 100
    assert holdings.of_kdump(scratch / "packed").pages == holdings.of_elf(synthetic).pages


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_a_byte(kind: str, dumps: dict[str, Path], tmp_path: Path) -> None:
    made = []
    for threads in (1, 4):
        path = tmp_path / str(threads)
        write(dumps["kdump-lzo standard"], path, kind, threads=threads)
        files = parts(path) if kind.endswith("split") else [path]
        made.append([file.read_bytes() for file in files])
    assert made[0] == made[1]


def test_damage_in_what_is_copied(dumps: dict[str, Path], tmp_path: Path) -> None:
    """Bytes of a page are copied as they are; what leaves the file is an error, and no file is left."""
    whole = bytearray(dumps["kdump-lzo standard"].read_bytes())
    dump = Kdump(dumps["kdump-lzo standard"])
    index = int(np.flatnonzero(dump.descriptors["flags"])[0])
    offset, size, _, _ = dump.descriptors[index].tolist()
    whole[offset : offset + size] = b"\xff" * size
    (tmp_path / "damaged").write_bytes(whole)
    vmdump.convert(tmp_path / "damaged", tmp_path / "copy", format="kdump-lzo")
    copy = Kdump(tmp_path / "copy")
    at, length, _, _ = copy.descriptors[index].tolist()
    assert copy.data_at(at, length) == b"\xff" * size
    with pytest.raises(errors.CodecError):
        vmdump.convert(tmp_path / "damaged", tmp_path / "other", format="kdump-zlib")

    struct.pack_into("<Q", whole, dump.descriptor_offset + 24 * index, len(whole) - size + 1)
    (tmp_path / "cut").write_bytes(whole)
    with pytest.raises(errors.FormatError):
        vmdump.convert(tmp_path / "cut", tmp_path / "other", format="kdump-lzo")
    with pytest.raises(errors.FormatError):
        vmdump.convert(tmp_path / "cut", tmp_path / "other", format="kdump-lzo", split=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "cut", "damaged"]


def test_the_command(
    dumps: dict[str, Path], guest: tuple[vmdump.BlockSource, Holdings], run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    done = run_vmdump(
        "convert", dumps["elf"], tmp_path / "set", "-f", "kdump-snappy", "--split", 2, "--json", "-j", 2
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["parts"] == [str(tmp_path / "set.1"), str(tmp_path / "set.2")]
    assert report["output_bytes"] == sum(path.stat().st_size for path in parts(tmp_path / "set"))
    assert not done.stderr
    done = run_vmdump("convert", *parts(tmp_path / "set"), tmp_path / "core", "-f", "elf", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert holdings.of_elf(tmp_path / "core") == guest[1]
    done = run_vmdump("convert", tmp_path / "core", "-", "-f", "kdump-lzo")
    assert done.returncode == 0, done.stderr
    (tmp_path / "stream").write_bytes(done.stdout)
    assert holdings.of_flattened(tmp_path / "stream", tmp_path / "standard") == guest[1]


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["elf", "out", "--split", "1"], 2, "split"),
        (["elf", "out", "--split", "1025"], 2, "split"),
        (["elf", "out", "--split", "900"], 2, "pages do not make 900 parts"),
        (["elf", "out", "--split", "2", "-f", "elf"], 2, "split"),
        (["elf", "out", "--split", "2", "--layout", "flattened"], 2, "split"),
        (["elf", "-", "--split", "2"], 2, "output"),
        (["elf", "fd:1", "--split", "2"], 2, "output"),
        (["elf", "-", "--json"], 2, "json"),
        (["qmp:sock", "out"], 2, "live"),
        (["nothing", "out"], 3, "nothing"),
        (["elf"], 2, "missing argument"),
        (["elf", "out", "--engine", "lzo2"], 8, "lzo2"),
        (["elf", "elf"], 6, "exists"),
        (["elf", "elf", "--force"], 5, "holds the guest"),
    ],
)
def test_refusals_are_one_line_and_leave_no_file(
    arguments: list[str], code: int, what: str, dumps: dict[str, Path], run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    (tmp_path / "elf").hardlink_to(dumps["elf"])
    done = run_vmdump("convert", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith(b"Usage: ")]) == 1
    assert what in done.stderr.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["elf"]


@pytest.mark.parametrize("split", [None, 2])
def test_an_open_guest_that_runs_is_not_converted(split: int | None, tmp_path: Path) -> None:
    """Its parts would be of different moments, and nothing would say so."""
    guest = RunningGuest([(0, noise(1, 8))], [(0, noise(2, 8))])
    with pytest.raises(errors.RequestError, match="live guest is dumped, not converted"):
        vmdump.convert(guest, tmp_path / "out", format="kdump-lzo", split=split)
    assert list(tmp_path.iterdir()) == []
    with guest.held(pause=True, cancelled=lambda: False) as still:
        vmdump.convert(still, tmp_path / "out", format="kdump-lzo", split=split)
    assert len(list(tmp_path.iterdir())) == (split or 1)
