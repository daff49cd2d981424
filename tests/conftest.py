"""What all tests share: QEMU's dumps, unpacked, and the command line in a process of its own."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import command
from helpers.goldens import DATA, unpack_sparse
from hypothesis import HealthCheck, settings

# The oracles are asserts: show what they compared.
pytest.register_assert_rewrite("oracles")

# print_blob gives the line that replays a failure; a deadline would let the machine's speed decide.
settings.register_profile(
    "vmdump", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], max_examples=50
)
settings.load_profile("vmdump")

# What a test run ignores under nohup, or in the background of a shell, its children would ignore as well.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test 120 s, and the process that runs the others of its file, unless it says otherwise.

    A hang is a failure, not a wait; the tests of a file share what is slow to make.
    """
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(120))
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """golden(machine, name): the path of one of QEMU's dumps, unpacked once per session."""
    folder = tmp_path_factory.mktemp("goldens")

    def unpack(machine: str, name: str) -> Path:
        output = folder / f"{machine}.{name}"
        if not output.exists():
            unpack_sparse(DATA / machine / f"{name}.xz", output)
        return output

    return unpack


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Give a folder for big files, removed with the test: pytest keeps three sessions of tmp_path."""
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def run_vmdump() -> command.RunVmdump:
    """run_vmdump(*args, prefix=(), **options of subprocess.run): the command in a process of its own."""
    return command.run
