"""What a user excludes: levels, and names of their bits."""

from __future__ import annotations

import pytest

from vmdump.errors import RequestError
from vmdump.formats.levels import parse_level


@pytest.mark.parametrize(
    ("exclude", "level"),
    [
        (0, 0),
        (31, 31),
        ("zero", 1),
        ("cache,cache-private, user", 14),
        (["free", "zero"], 17),
        ("free,free", 16),
        ([], 0),
    ],
)
def test_levels(exclude: int | str | list[str], level: int) -> None:
    assert parse_level(exclude) == level


@pytest.mark.parametrize("exclude", [-1, 32, "", "31", "caches", "free,", ["user,free"]])
def test_no_levels(exclude: int | str | list[str]) -> None:
    with pytest.raises(
        RequestError, match=r"^exclude: .*(from 0 to 31|zero, cache, cache-private, user, free)$"
    ):
        parse_level(exclude)
