"""Outputs in folders that others may write to: nobody's link or FIFO there leads a dump to where it harms.

Every folder, object, owner and user together, with what has to happen written by hand. One process for each
user goes through all of them: who opens a path counts, not how.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vmdump
from vmdump.errors import Cancelled, OutputExists, SinkError
from vmdump.sinks.opening import open_sink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")

ROOT, NOBODY, THIRD = 0, 65534, 12345
MODES = (0o700, 0o755, 0o775, 0o777, 0o1777)
NODES = ("fifo", "char", "block")
LINKS = ("to-fifo", "to-char", "to-block")
KINDS = ("nothing", "file", *NODES, "to-file", "to-nothing", *LINKS, "to-folder")
SETTINGS = ("protected_symlinks", "protected_fifos", "protected_hardlinks")


@dataclass(frozen=True)
class Case:
    mode: int
    folder_owner: int
    kind: str
    owner: int
    force: bool

    @property
    def shared(self) -> bool:
        return self.mode in (0o775, 0o777, 0o1777)


CASES = [
    Case(*each)
    for each in itertools.product(MODES, (ROOT, NOBODY, THIRD), KINDS, (ROOT, NOBODY, THIRD), (False, True))
]


def expected(case: Case, user: int) -> str:
    """What an output of `user` has to become."""
    root, owns_folder = user == ROOT, user == case.folder_owner
    may_enter = root or owns_folder or case.mode != 0o700
    may_write = root or owns_folder or case.mode in (0o777, 0o1777)
    may_replace = may_write and (root or owns_folder or case.mode != 0o1777 or user == case.owner)
    strange = case.shared and case.owner not in (user, case.folder_owner)
    if not may_enter:
        return "denied"
    if case.kind == "nothing":
        return "created" if may_write else "denied"
    if case.kind == "to-folder":
        return "refused" if strange else "created"
    if case.kind in NODES:
        return "refused" if strange and not case.force else "opened"
    leads_to_device = case.kind in ("to-char", "to-block")
    followed = not strange and (not leads_to_device or case.owner in (ROOT, user))
    if case.kind in LINKS and followed:
        return "opened"
    if case.force:
        return "created" if may_replace else "denied"
    return "refused" if case.kind in LINKS else "exists"


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """A folder that everybody may enter and only root may write to; not below one that is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="vmdump-test-shared-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def disk(top: Path) -> Iterator[int]:
    """The number of a loop device."""
    image = top / "image"
    image.write_bytes(bytes(1 << 20))
    found = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    device = found.stdout.strip()
    yield os.stat(device).st_rdev
    subprocess.run(["losetup", "-d", device], check=True)


def make_nodes(folder: Path, disk: int) -> None:
    """Make one of each kind, which everybody may write to."""
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "file").write_bytes(b"theirs")
    (folder / "folder").mkdir()
    (folder / "folder").chmod(0o777)
    os.mkfifo(folder / "fifo")
    try:
        os.mknod(folder / "char", stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(folder / "block", stat.S_IFBLK, disk)
        with (folder / "char").open("wb"):
            pass
    except PermissionError as error:
        pytest.skip(f"no device can be made here: {error}")
    for name in ("fifo", "char", "block"):
        (folder / name).chmod(0o666)


def make_case(folder: Path, case: Case, nodes: Path, disk: int) -> Path:
    """Give the path of the output."""
    folder.mkdir()
    path = folder / "out"
    if case.kind == "file":
        path.write_bytes(b"theirs")
    elif case.kind == "fifo":
        os.mkfifo(path)
    elif case.kind == "char":
        os.mknod(path, stat.S_IFCHR, os.makedev(1, 3))
    elif case.kind == "block":
        os.mknod(path, stat.S_IFBLK, disk)
    elif case.kind.startswith("to-"):
        path.symlink_to(nodes / case.kind.removeprefix("to-"))
    if case.kind != "nothing":
        os.chown(path, case.owner, case.owner, follow_symlinks=False)
        if case.kind in NODES:
            path.chmod(0o666)
    os.chown(folder, case.folder_owner, case.folder_owner)
    folder.chmod(case.mode)
    return path / f"new-{folder.name}" if case.kind == "to-folder" else path


def outcome(path: Path, force: bool) -> str:
    try:
        with open_sink(path, force=force, cancelled=lambda: True) as output:
            return "opened" if output.folder is None else "created"
    except Cancelled:  # it would wait for the FIFO's reader
        return "opened"
    except OutputExists:
        return "exists"
    except SinkError as error:
        assert len(str(error).splitlines()) == 1
        return "refused" if "another user's" in str(error) else "denied"


def outcomes(user: int, cases: list[tuple[Path, bool]]) -> list[str]:
    """Be `user` in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reader)
            os.fsync = lambda fd: None  # type: ignore[assignment]
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            with os.fdopen(writer, "w") as file:
                json.dump([outcome(path, force) for path, force in cases], file)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return list(json.loads(text))


@pytest.fixture(params=["0", "1"])
def kernels_rule(request: pytest.FixtureRequest) -> Iterator[str]:
    """What Linux itself refuses, off and on."""
    paths = [Path("/proc/sys/fs") / name for name in SETTINGS]
    before = [path.read_text() for path in paths]
    try:
        for path in paths:
            path.write_text(str(request.param))
    except OSError as error:
        pytest.skip(f"the kernel's own rule cannot be set here: {error}")
    yield str(request.param)
    for path, value in zip(paths, before, strict=True):
        path.write_text(value)


def check_table(top: Path, disk: int, user: int) -> None:
    with tempfile.TemporaryDirectory(dir=top, prefix="table-") as name:
        here = Path(name)
        here.chmod(0o755)
        make_nodes(here / "nodes", disk)
        paths = [
            (make_case(here / str(number), case, here / "nodes", disk), case.force)
            for number, case in enumerate(CASES)
        ]
        found = outcomes(user, paths)
        wrong = [
            f"{case}: {got}, not {expected(case, user)}"
            for case, got in zip(CASES, found, strict=True)
            if got != expected(case, user)
        ]
        assert not wrong, f"{len(wrong)} of {len(CASES)}:\n" + "\n".join(wrong[:20])
        # What nobody may have touched is as it was, and nothing is left but what was there or is whole.
        assert (here / "nodes" / "file").read_bytes() == b"theirs"
        for (path, _), case, got in zip(paths, CASES, found, strict=True):
            folder = here / path.relative_to(here).parts[0]
            assert os.listdir(folder) == (["out"] if case.kind != "nothing" or got == "created" else [])
            if got == "created" and case.kind != "to-folder":
                assert stat.S_ISREG(path.lstat().st_mode)
            elif case.kind == "file":
                assert path.read_bytes() == b"theirs"


@pytest.mark.parametrize("user", [ROOT, NOBODY])
def test_every_case(user: int, top: Path, disk: int, kernels_rule: str) -> None:
    check_table(top, disk, user)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def strangers_link(path: Path, target: str | Path) -> Path:
    path.symlink_to(target)
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return path


def test_disk_behind_a_strangers_link(shared: Path, disk: int) -> None:
    """The bytes of the disk, not only the error."""
    node = shared.parent / "disk"
    os.mknod(node, stat.S_IFBLK, disk)
    node.write_bytes(b"mine" * 128)
    link = strangers_link(shared / "out", node)
    for force in (False, True):
        outcome(link, force)
        subprocess.run(["blockdev", "--flushbufs", node], check=True)
        with node.open("rb") as file:
            assert file.read(4) == b"mine"
    assert stat.S_ISREG(link.lstat().st_mode)


def test_link_behind_a_link(shared: Path) -> None:
    """One's own link, in one's own folder, to a stranger's in a shared one."""
    strangers_link(shared / "theirs", "/dev/null")
    own = shared.parent / "own"
    own.symlink_to(shared / "theirs")
    assert outcome(own, force=False) == "refused"
    assert outcome(own, force=True) == "created"
    assert (shared / "theirs").is_symlink()


@pytest.mark.parametrize("words", ["way/out", "way/../out", "way/deeper/out", "./way//out"])
@pytest.mark.parametrize("force", [False, True])
def test_strangers_link_on_the_way(words: str, force: bool, shared: Path) -> None:
    target = shared.parent / "target"
    (target / "deeper").mkdir(parents=True)
    strangers_link(shared / "way", target)
    assert outcome(shared / words, force) == "refused"
    # The kernel may follow a stranger's link for nobody.
    assert not [path for path in shared.parent.rglob("*") if not path.is_symlink() and path.is_file()]
    os.chown(shared / "way", 0, 0, follow_symlinks=False)
    assert outcome(shared / words, force) == "created"


def test_link_of_ones_own_that_somebody_linked(shared: Path) -> None:
    """Where protected_hardlinks is off, root's own link can be had in a shared folder by anybody."""
    secret = shared.parent / "secret"
    secret.symlink_to("/dev/null")
    os.link(secret, shared / "out", follow_symlinks=False)
    assert outcome(shared / "out", force=False) == "refused"


def test_access_by_a_list(shared: Path) -> None:
    """An ACL that lets one more user write shows in the group's bits."""
    shared.chmod(0o755)
    nobody_in_particular = 0xFFFFFFFF
    rights = [  # tag, rwx, id: the owner, one user, the group, the mask, others
        (1, 7, nobody_in_particular),
        (2, 7, NOBODY),
        (4, 5, nobody_in_particular),
        (16, 7, nobody_in_particular),
        (32, 5, nobody_in_particular),
    ]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in rights)
    try:
        os.setxattr(shared, "system.posix_acl_access", packed)
    except OSError as error:
        pytest.skip(f"no ACLs here: {error}")
    strangers_link(shared / "out", "/dev/null")
    assert outcome(shared / "out", force=False) == "refused"


def test_endless_links(shared: Path) -> None:
    (shared / "one").symlink_to("two")
    (shared / "two").symlink_to("one")
    for path in (shared / "one", shared / "one" / "out"):
        with pytest.raises(SinkError, match="Too many levels"):
            open_sink(path)


def test_special_file_that_is_exchanged_is_not_written_to(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the opening somebody puts another FIFO there."""
    fifo = shared / "out"
    os.mkfifo(fifo)
    real = os.open

    def exchange(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_ACCMODE == os.O_WRONLY and path == "out":
            fifo.unlink()
            os.mkfifo(fifo)
            reader = real(fifo, os.O_RDONLY | os.O_NONBLOCK)
            try:
                return real(path, flags, *rest, **more)
            finally:
                os.close(reader)
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", exchange)
    with pytest.raises(SinkError, match="in its place"):
        open_sink(fifo)


def test_folder_that_is_exchanged_gets_no_file(tmp_path: Path) -> None:
    """Another folder of the same name, or a link to one, is not where the dump was to go."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(SinkError, match="in its place"), open_sink(folder / "out") as output:
        os.write(output.fd, b"whole")
        folder.rename(tmp_path / "old")
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to("elsewhere")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_taken_back_is_ones_own(tmp_path: Path) -> None:
    """A set that fails does not take a file with it that somebody has put in the place of a part."""
    output = open_sink(tmp_path / "out")
    output.commit()
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "theirs").replace(tmp_path / "out")
    output.retract()
    output.close()
    assert (tmp_path / "out").read_bytes() == b"theirs"


def test_disk_that_is_in_use(disk: int, tmp_path: Path) -> None:
    """As a mounted one is: it is opened for oneself alone."""
    node = tmp_path / "disk"
    os.mknod(node, stat.S_IFBLK, disk)
    fd = os.open(node, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(SinkError, match="in use"):
            open_sink(node)
    finally:
        os.close(fd)
    assert outcome(node, force=False) == "opened"


def test_disk_of_two_names_is_not_its_own_output(disk: int, tmp_path: Path) -> None:
    for name in ("one", "two"):
        os.mknod(tmp_path / name, stat.S_IFBLK, disk)
    with pytest.raises(SinkError, match="holds the guest"):
        vmdump.dump(f"raw:{tmp_path / 'one'}", tmp_path / "two", format="elf")


def test_names_of_ones_own_descriptors_in_a_shared_folder(shared: Path) -> None:
    """Links of the kernel's lead where no path does."""
    reader, writer = os.pipe()
    try:
        (shared / "out").symlink_to(f"/proc/self/fd/{writer}")
        with open_sink(shared / "out") as output:
            os.write(output.fd, b"piped")
        assert os.read(reader, 5) == b"piped"
        with open_sink("/dev/null") as output:
            assert output.folder is None
    finally:
        os.close(reader)
        os.close(writer)
