"""QEMUs without a machine, and `vmdump serve` in front of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.qmp_client import QmpClient, Started, start_qemu, start_serve


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is closed with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def qemu(stack: ExitStack, tmp_path: Path) -> Started:
    """A QEMU of the test's own; up in 0.1 s."""
    return stack.enter_context(start_qemu(tmp_path, machine="none"))


@pytest.fixture
def served(stack: ExitStack, qemu: Started, tmp_path: Path) -> Started:
    """`vmdump serve` in front of it."""
    return stack.enter_context(start_serve(qemu.path, tmp_path))


@pytest.fixture
def connect(stack: ExitStack, served: Started) -> Callable[..., QmpClient]:
    """connect(...): a client of it."""
    return lambda *args, **options: stack.enter_context(QmpClient(served.path, *args, **options))
