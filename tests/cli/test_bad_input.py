"""Bad input gets one line, an exit code of its own and errno's text, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf import ElfCore
from oracles.elf_builder import Load, build_elf, note
from oracles.kdump import Kdump

import vmdump
from vmdump import errors

GUEST = "synthetic:2M"


@pytest.mark.parametrize("name", ["a", "page", "in"])
def test_a_name_that_is_a_word_of_the_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_vmdump: RunVmdump
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(build_elf([Load(0, bytes(8192))]))
    done = run_vmdump("read", name, "0x123456000", "8")
    assert done.returncode == errors.ReadError.exit_code
    assert done.stderr.startswith(f"vmdump: {name}: ".encode())


class Attempt:
    """One run of the command that must be refused."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code = done.returncode
        self.output = done.stdout
        self.message = done.stderr.decode()

    def check(self, code: int, *words: str) -> None:
        """Assert the exit code, a single line without a traceback, and what the line says."""
        assert self.code == code, self.message
        assert not self.output
        # Of a call that is wrong in itself, its usage stands above.
        *usage, message = self.message.splitlines()
        assert len(usage) < 2, self.message
        assert all(line.startswith("Usage: vmdump ") for line in usage)
        assert message.startswith("vmdump: ")
        assert self.message.endswith("\n")
        for word in words:
            assert word in self.message


@pytest.fixture
def attempt(run_vmdump: RunVmdump, tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    """attempt(*arguments): run a dump that is refused; whatever is in tmp_path must be untouched."""

    def listing() -> dict[Path, bytes | None]:
        return {
            path: path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else None
            for path in tmp_path.rglob("*")
        }

    def run(*arguments: object, **options: object) -> Attempt:
        before = listing()
        result = Attempt(run_vmdump("dump", *arguments, **options))
        assert listing() == before
        return result

    yield run
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def text_of(code: int) -> str:
    return os.strerror(code)


# Sources


def test_missing_source(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    for source in (tmp_path / "none", f"raw:{tmp_path}/none"):
        attempt(source, tmp_path / "out").check(
            errors.SourceError.exit_code, f"{tmp_path}/none", text_of(errno.ENOENT)
        )


def test_folder_and_pipe_as_source(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    folder, fifo = tmp_path / "folder", tmp_path / "fifo"
    folder.mkdir()
    os.mkfifo(fifo)
    for source in (folder, f"raw:{folder}"):
        attempt(source, tmp_path / "out").check(errors.SourceError.exit_code, text_of(errno.EISDIR))
    for source in (fifo, f"raw:{fifo}"):
        attempt(source, tmp_path / "out").check(errors.SourceError.exit_code, str(fifo))


def test_unreadable_source(tmp_path: Path, run_vmdump: RunVmdump) -> None:
    source = tmp_path / "guest"
    source.write_bytes(bytes(4096))
    source.chmod(0)
    prefix: list[str] = []
    if os.geteuid() == 0:
        # root reads everything until it gives up the capability to.
        if shutil.which("setpriv") is None:
            pytest.skip("running as root, and setpriv is not installed")
        prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    for text in (str(source), f"raw:{source}"):
        done = run_vmdump("dump", text, tmp_path / "out", prefix=prefix)
        Attempt(done).check(errors.SourceError.exit_code, str(source), text_of(errno.EACCES))
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("size", [1, 4095, 4097, 10000])
def test_raw_size_that_is_no_whole_pages(size: int, attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(bytes(size))
    attempt(f"raw:{tmp_path}/guest", tmp_path / "out").check(
        errors.LayoutError.exit_code, f"{tmp_path}/guest", "4096"
    )


def test_empty_sources(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    (tmp_path / "guest").touch()
    attempt(f"raw:{tmp_path}/guest", tmp_path / "out").check(errors.SourceError.exit_code, "empty")
    result = attempt(tmp_path / "guest", tmp_path / "out")
    result.check(result.code, f"{tmp_path}/guest")
    assert result.code in (errors.SourceError.exit_code, errors.FormatError.exit_code)


def test_file_that_is_no_dump(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(b"#!/bin/sh\n" * 1000)
    attempt(tmp_path / "guest", tmp_path / "out").check(errors.FormatError.exit_code, f"{tmp_path}/guest")


@pytest.mark.parametrize(
    ("source", "code", "word"),
    [
        ("raw:GUEST?base=0x800", 4, "0x800"),
        ("raw:GUEST?base=x", 2, "base"),
        ("raw:GUEST?arch=vax", 2, "vax"),
        ("raw:GUEST?colour=red", 2, "colour"),
        ("raw:GUEST?base=0xffffffffffffffff", 4, ""),
        ("raw:GUEST?base=0xfffffffffffff000", 4, ""),
        ("synthetic:", 2, ""),
        ("synthetic:0", 2, ""),
        ("synthetic:12X", 2, "12X"),
        ("synthetic:2M?fill=2", 2, "fill"),
        ("synthetic:2M?seed=x", 2, "seed"),
        ("synthetic:2M?colour=red", 2, "colour"),
    ],
)
def test_wrong_source_options(
    source: str, code: int, word: str, attempt: Callable[..., Attempt], tmp_path: Path
) -> None:
    guest = tmp_path / "guest"
    guest.write_bytes(bytes(8192))
    attempt(source.replace("GUEST", str(guest)), tmp_path / "out").check(code, word)


def test_python_blocks_that_overlap_or_are_unsorted(tmp_path: Path) -> None:
    """The Python twin of the command's line: class, address and message."""
    for start in (0x1000, 0):
        with pytest.raises(errors.LayoutError, match=r"0x[12]000") as caught:
            vmdump.dump([(0x1000, bytes(8192)), (start, bytes(4096))], tmp_path / "out")
        assert caught.value.address == start
    assert not list(tmp_path.iterdir())


# ELF cores that lie

HOSTILE: dict[str, bytes] = {
    "header only": build_elf([])[:64],
    "cut in the program headers": build_elf([Load(0, bytes(4096))])[:100],
    "memory cut off": build_elf([Load(0, b"x" * 8192)])[:-4096],
    "offset behind the end": build_elf([Load(0, b"x" * 4096, offset=1 << 40)]),
    "offset wraps": build_elf([Load(0, b"x" * 4096, offset=(1 << 64) - 4096, filesz=8192, memsz=8192)]),
    "filesz above memsz": build_elf([Load(0, b"x" * 8192, memsz=4096)]),
    "address wraps": build_elf([Load((1 << 64) - 4096, b"x" * 8192)]),
    "more headers than bytes": build_elf([Load(0, bytes(4096))], phnum=60000),
    "headers behind the end": build_elf([Load(0, bytes(4096))], phoff=1 << 50),
    "xnum with a huge count": build_elf([Load(0, bytes(4096))], xnum=True, phnum=0xFFFFFFFF),
    "no segment": build_elf([]),
    "an executable": build_elf([Load(0, bytes(4096))], e_type=2),
    "note longer than the notes": build_elf(
        [Load(0, bytes(4096))], notes=b"\x05\0\0\0\xff\xff\xff\x7f\x01\0\0\0CORE\0\0\0\0"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("output_format", ["elf", "kdump-zlib"])
def test_hostile_elf(name: str, output_format: str, attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(HOSTILE[name])
    result = attempt(tmp_path / "core", tmp_path / "out", "-f", output_format)
    allowed = {errors.FormatError.exit_code, errors.LayoutError.exit_code, errors.SourceError.exit_code}
    assert result.code in allowed, result.message
    result.check(result.code)


def test_segments_that_contradict_each_other(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    """Two different contents for one address are no memory."""
    core = build_elf([Load(0, b"a" * 8192), Load(4096, b"b" * 8192)])
    (tmp_path / "core").write_bytes(core)
    attempt(tmp_path / "core", tmp_path / "out").check(errors.LayoutError.exit_code, "0x1000")


def test_half_stored_segment_is_zero_filled(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """filesz < memsz is no lie: a loader fills up with zeros."""
    notes = note(b"CORE", 1, bytes(336))
    (tmp_path / "core").write_bytes(build_elf([Load(0x1000, b"x" * 5000, memsz=3 * 4096)], notes=notes))
    assert run_vmdump("dump", tmp_path / "core", tmp_path / "out").returncode == 0
    kdump = Kdump(tmp_path / "out").check()
    assert b"".join(page for _, page in kdump.pages()) == b"x" * 5000 + bytes(3 * 4096 - 5000)
    assert run_vmdump("dump", tmp_path / "core", tmp_path / "elf", "-f", "elf").returncode == 0
    core = ElfCore(tmp_path / "elf").check_vmdump_layout()
    assert core.read(0x1000, 3 * 4096) == b"x" * 5000 + bytes(3 * 4096 - 5000)


# Outputs


def test_output_folder_missing(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    attempt(GUEST, tmp_path / "none" / "out").check(
        errors.SinkError.exit_code, f"{tmp_path}/none/out", text_of(errno.ENOENT)
    )
    (tmp_path / "file").touch()
    attempt(GUEST, tmp_path / "file" / "out").check(errors.SinkError.exit_code, text_of(errno.ENOTDIR))


def test_output_is_a_folder(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for options in ((), ("--force",)):
        attempt(GUEST, tmp_path / "folder", *options).check(errors.SinkError.exit_code, text_of(errno.EISDIR))


@pytest.mark.parametrize("output_format", ["elf", "kdump-zlib"])
def test_output_exists(
    output_format: str, attempt: Callable[..., Attempt], run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.write_bytes(b"precious")
    attempt(GUEST, output, "-f", output_format).check(
        errors.OutputExists.exit_code, str(output), text_of(errno.EEXIST), "--force"
    )
    assert run_vmdump("dump", GUEST, output, "-f", output_format, "--force").returncode == 0
    assert output.stat().st_size > 100000
    assert list(tmp_path.iterdir()) == [output]


def test_output_is_a_symlink(attempt: Callable[..., Attempt], run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """A link is never followed: --force replaces the link, what it points to stays as it is."""
    target, output = tmp_path / "target", tmp_path / "out"
    target.write_bytes(b"precious")
    output.symlink_to(target)
    attempt(GUEST, output).check(errors.OutputExists.exit_code, text_of(errno.EEXIST))
    assert run_vmdump("dump", GUEST, output, "--force").returncode == 0
    assert target.read_bytes() == b"precious"
    assert not output.is_symlink()
    Kdump(output).check()

    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    attempt(GUEST, dangling).check(errors.OutputExists.exit_code)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("output_format", ["elf", "kdump-zlib"])
def test_full_device(output_format: str, attempt: Callable[..., Attempt]) -> None:
    attempt(GUEST, "/dev/full", "-f", output_format).check(
        errors.SinkError.exit_code, "/dev/full", text_of(errno.ENOSPC)
    )


@pytest.mark.parametrize("output_format", ["elf", "kdump-zlib", "kdump-snappy"])
@pytest.mark.parametrize("layout", ["standard", "flattened"])
def test_full_folder(output_format: str, layout: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    if shutil.which("mount") is None:
        pytest.skip("mount is not installed")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mount.stderr.decode().strip()}")
    try:
        options = ("--layout", layout) if output_format != "elf" else ()
        done = run_vmdump("dump", "synthetic:16M?fill=0.9", tmp_path / "out", "-f", output_format, *options)
        Attempt(done).check(errors.SinkError.exit_code, f"{tmp_path}/out", text_of(errno.ENOSPC))
        assert not list(tmp_path.iterdir())
        free = os.statvfs(tmp_path)
        assert free.f_bfree == free.f_blocks
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_closed_and_read_only_descriptors(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("rb") as file:
        attempt(GUEST, f"fd:{file.fileno()}", pass_fds=(file.fileno(),)).check(
            errors.SinkError.exit_code, text_of(errno.EBADF)
        )
    attempt(GUEST, "fd:917").check(errors.SinkError.exit_code, "fd:917", text_of(errno.EBADF))
    attempt(GUEST, "fd:x").check(errors.RequestError.exit_code, "fd:x")
    attempt(GUEST, "fd:-1").check(errors.RequestError.exit_code, "fd:-1")


def test_fifo_and_null_device_are_outputs(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """What is there and no regular file is written to, without --force and without being replaced."""
    assert run_vmdump("dump", GUEST, "/dev/null").returncode == 0
    assert Path("/dev/null").is_char_device()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with (tmp_path / "received").open("wb") as received:
        reader = subprocess.Popen(["cat", fifo], stdout=received)
        done = run_vmdump("dump", GUEST, fifo)
        reader.wait()
    assert done.returncode == 0, done.stderr
    assert fifo.is_fifo()
    judges.makedumpfile_rearrange(tmp_path / "received", tmp_path / "standard")
    Kdump(tmp_path / "standard").check()


@pytest.mark.parametrize("output_format", ["elf", "kdump-lzo"])
def test_block_device_is_an_output(output_format: str, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """A disk has room before and behind the dump, and cannot be cut to its length."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    if shutil.which("losetup") is None:
        pytest.skip("losetup is not installed")
    attach = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if attach.returncode:
        pytest.skip(f"cannot set up a loop device: {attach.stderr.strip()}")
    device = attach.stdout.strip()
    try:
        done = run_vmdump("dump", GUEST, device, "-f", output_format)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert done.returncode == 0, done.stderr
    assert run_vmdump("dump", GUEST, tmp_path / "file", "-f", output_format).returncode == 0
    dump = (tmp_path / "file").read_bytes()
    assert image.read_bytes()[: len(dump)] == dump


# Requests


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("-f", "kdump-xz"), 2, "kdump-xz"),
        (("--layout", "sideways"), 2, "sideways"),
        (("--engine", "nosuch"), errors.EngineUnavailable.exit_code, "nosuch"),
        (("-f", "kdump-lzo", "--engine", "zlib"), errors.EngineUnavailable.exit_code, "lzo"),
        (("--engine", "zlib", "--level", "99"), 2, "99"),
        (("--level", "x"), 2, "level"),
        (("-f", "elf", "--level", "1"), 2, "level"),
        (("-f", "elf", "--engine", "zlib"), 2, "engine"),
        (("-j", "0"), 2, "threads"),
        (("-j", "-3"), 2, "threads"),
        (("--begin", "12Q", "--length", "1M", "-f", "elf"), 2, "12Q"),
        (("--nosuch",), 2, "--nosuch"),
    ],
)
def test_wrong_requests(
    options: tuple[str, ...], code: int, word: str, attempt: Callable[..., Attempt], tmp_path: Path
) -> None:
    attempt(GUEST, tmp_path / "out", *options).check(code, word)


@pytest.mark.parametrize("arguments", [(), (GUEST,), (GUEST, "a", "b")])
def test_wrong_number_of_arguments(
    arguments: tuple[str, ...], attempt: Callable[..., Attempt], tmp_path: Path
) -> None:
    attempt(*arguments, cwd=tmp_path).check(2, "split set" if len(arguments) > 2 else "missing argument")


def test_unknown_command(run_vmdump: RunVmdump) -> None:
    Attempt(run_vmdump("undump")).check(2, "undump")


def test_debug_shows_the_traceback(run_vmdump: RunVmdump, tmp_path: Path) -> None:
    done = run_vmdump("--debug", "dump", tmp_path / "none", tmp_path / "out")
    assert done.returncode == errors.SourceError.exit_code
    assert b"Traceback" in done.stderr


def test_every_error_class_has_an_exit_code_of_its_own() -> None:
    classes = [one for name in errors.__all__ if isinstance(one := getattr(errors, name), type)]
    assert len(classes) > 20
    assert len({one.exit_code for one in classes}) == len(classes)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads_that_nothing_can_have(threads: int, run_vmdump: RunVmdump, tmp_path: Path) -> None:
    """Dumping, reading, verifying, repairing, choosing: one rule for all."""
    path = tmp_path / "dump"
    vmdump.dump(GUEST, path)
    with vmdump.open(path) as dump:
        calls: list[Callable[[], object]] = [
            lambda: vmdump.dump(GUEST, tmp_path / "out", threads=threads),
            lambda: vmdump.convert(path, tmp_path / "out", threads=threads),
            lambda: vmdump.verify(path, threads=threads),
            lambda: vmdump.repair(path, tmp_path / "out", threads=threads),
            lambda: vmdump.bench(path, threads=threads),
            lambda: dump.pages(0, 1, threads=threads),
            lambda: next(dump.batches(threads=threads)),
        ]
        for call in calls:
            with pytest.raises(errors.RequestError) as refused:
                call()
            assert refused.value.parameter == "threads"
    for command in (("verify", path), ("convert", path, tmp_path / "out"), ("demo", "2M"), ("bench", path)):
        Attempt(run_vmdump(*command, "-j", str(threads))).check(errors.RequestError.exit_code, "threads")
