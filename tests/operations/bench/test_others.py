"""How busy others keep the processors: told apart from what this process does itself."""

from __future__ import annotations

import io
from typing import Any

import pytest

from vmdump.operations.bench import others
from vmdump.operations.bench.others import OthersShare


@pytest.mark.parametrize(
    ("after", "own", "share"),
    [
        # Of 2 processors for 10 s, 2000 ticks: idle ones and waiting for disks do not count.
        ("cpu0 100 0 0 900 0 0 0 0\ncpu1 0 0 0 500 500 0 0 0\n", 1.0, 0.0),
        ("cpu0 1000 0 0 0 0 0 0 0\ncpu1 0 0 0 1000 0 0 0 0\n", 0.0, 0.5),
        ("cpu0 1000 0 0 0 0 0 0 0\ncpu1 0 0 0 1000 0 0 0 0\n", 5.0, 0.25),
        ("cpu0 100 100 100 0 0 100 100 500\ncpu1 0 0 1000 0 0 0 0 0\n", 0.0, 1.0),
        ("cpu2 1000 0 0 0 0 0 0 0\n", 0.0, 0.0),
        ("nonsense\n", 0.0, 0.0),
        ("cpu0 x\n", 0.0, 0.0),
    ],
)
def test_share(after: str, own: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(("cpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\n", after))
    clocks = iter((0.0, 10.0))
    owns = iter((0.0, own))

    def fake(*_: Any, **__: Any) -> io.StringIO:
        return io.StringIO(next(texts))

    monkeypatch.setattr(others, "open", fake, raising=False)
    monkeypatch.setattr(others.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(others.os, "sysconf", lambda _: 100)
    monkeypatch.setattr(others.time, "perf_counter", lambda: next(clocks))
    monkeypatch.setattr(others.time, "process_time", lambda: next(owns))
    assert OthersShare().share() == pytest.approx(share)


def test_real_figures() -> None:
    assert 0 <= OthersShare().share() <= 1
